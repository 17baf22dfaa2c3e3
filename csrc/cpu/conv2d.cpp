#include "sparsekern/conv2d.h"

#include <type_traits>

#include "compute_values.h"
#include "images.h"
#include "list_convolution.h"

namespace sparsekern {

TapPlaces forward_places(const PatternView& pattern, const Conv2dShape& shape, const ConvLayout& layout,
                         const TapGroups& groups) {
    const int64_t rows_per_group = pattern.rows / shape.groups;
    TapPlaces places;
    places.rows = pattern.rows;
    places.groups = groups.count();
    for (int64_t n = 0; n < pattern.rows; ++n) {
        places.of_row.push_back({n, 0, n / rows_per_group * pattern.cin * layout.channel_size});
    }
    for (int64_t i = 0; i < pattern.kh; ++i) {
        for (int64_t j = 0; j < pattern.kw; ++j) {
            const int64_t tap = layout.tap_plane(i, j) * layout.plane_size + layout.tap_offset(i, j);
            for (int64_t c = 0; c < pattern.cin; ++c) {
                places.of_column.push_back({0, groups.of(i, c), c * layout.channel_size + tap});
            }
        }
    }
    return places;
}

namespace {

template <class T>
void convolve(const PatternView& pattern, const Conv2dShape& shape, const void* values, const T* x,
              const void* bias, T* y, int threads) {
    using A = AccumulateType<T>;
    const KernelTable<A>& table = kernels<A>();
    const ComputeValues<T> weights(values, pattern.nnz);
    const ComputeValues<T> start(bias, bias != nullptr ? pattern.rows : 0);
    const ConvLayout layout(pattern, shape, table.lanes);
    const PixelGrid grid(layout.vertical.out, layout.horizontal.out, layout.pitch, table.lanes);
    const TapGroups groups =
        TapGroups::fitting<A>(grid, pattern.cin, pattern.kh, layout.vertical.tap_shift.back());
    const TapList<A> list(pattern, forward_places(pattern, shape, layout, groups),
                          [&](int64_t index) { return weights.data()[index]; });
    const int64_t beyond = kMaxVectors * table.lanes;
    const int64_t in_size = shape.height * shape.width;
    const auto source = [&](int64_t image, A* scratch) -> const A* {
        const T* const from = x + image * layout.channels * in_size;
        if constexpr (std::is_same<T, A>::value) {
            // The last image has nothing readable behind it.
            if (layout.is_identity() && image + 1 < shape.batch && layout.image_size() >= beyond) return from;
        }
        pack_image<T>(table, layout, from, scratch, beyond);
        return scratch;
    };
    const auto store = [&](int64_t image, int64_t row, int64_t rows, int64_t panel, const A* sums) {
        T* const to = y + (image * pattern.rows + row) * layout.out_size();
        for_each_run(grid, panel, [&](int64_t i, int64_t column, int64_t count, int64_t pixel) {
            unpack(table, sums + pixel, grid.panels.width,
                   Samples<T>{to + i * layout.horizontal.out + column, 1, layout.out_size(), count, rows});
        });
    };
    ListConvolution<A>(list, grid, start.data(), layout.image_size(), threads)
        .run(shape.batch, source, store);
}

}  // namespace

void conv2d(DType dtype, const PatternView& pattern, const Conv2dShape& shape, InputValues values,
            InputValues x, InputValues bias, OutputValues y, int threads) {
    check_conv2d(pattern, shape, "x", x, "y", y, threads);
    check_values("values", values, pattern.nnz);
    if (bias.data != nullptr) check_values("bias", bias, pattern.rows);
    if (y.count == 0) return;
    threads = conv2d_threads(pattern, shape, threads);
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        convolve<T>(pattern, shape, values.data, static_cast<const T*>(x.data), bias.data,
                    static_cast<T*>(y.data), threads);
    });
}

}  // namespace sparsekern
