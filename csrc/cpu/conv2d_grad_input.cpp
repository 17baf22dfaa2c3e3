#include <algorithm>
#include <type_traits>

#include "compute_values.h"
#include "images.h"
#include "list_convolution.h"
#include "sparsekern/conv2d.h"

namespace sparsekern {
namespace {

// One axis of the source. Pixel i of a plane gathers from output pixel i - shift for each of the plane's
// taps; with margins of zeros around grad_y that is one offset for each tap. Only the pixels [begin, end) are
// inside the input.
struct GradAxis {
    int64_t begin;
    int64_t end;
    int64_t margin;
    int64_t length;

    explicit GradAxis(const ConvAxis& axis) {
        axis.inside_any(&begin, &end);
        margin = std::max<int64_t>(0, axis.tap_shift.back() - begin);
        length = margin + std::max(axis.out, end);
    }
    int64_t offset(int64_t shift) const { return margin + begin - shift; }
};

struct GradLayout {
    GradAxis vertical;
    GradAxis horizontal;
    int64_t pitch;
    int64_t size;  // of one channel

    GradLayout(const ConvLayout& input, int64_t lanes)
        : vertical(input.vertical),
          horizontal(input.horizontal),
          pitch(vertical.length > 1 ? padded_pitch(horizontal.length, lanes) : horizontal.length),
          size(spread_size(vertical.length * pitch, lanes)) {}
};

// Rows of the result are planes: all channels of the first phase, then of the next.
TapPlaces backward_places(const PatternView& pattern, const Conv2dShape& shape, const ConvLayout& input,
                          const GradLayout& layout, const TapGroups& groups) {
    const int64_t rows_per_group = pattern.rows / shape.groups;
    TapPlaces places;
    places.rows = input.phases * input.channels;
    places.groups = groups.count();
    for (int64_t n = 0; n < pattern.rows; ++n) {
        places.of_row.push_back(
            {n / rows_per_group * pattern.cin, groups.of(0, n % rows_per_group), n * layout.size});
    }
    for (int64_t i = 0; i < pattern.kh; ++i) {
        for (int64_t j = 0; j < pattern.kw; ++j) {
            const int64_t row = input.tap_plane(i, j) * input.channels;
            const int64_t offset = layout.vertical.offset(input.vertical.tap_shift[i]) * layout.pitch +
                                   layout.horizontal.offset(input.horizontal.tap_shift[j]);
            for (int64_t c = 0; c < pattern.cin; ++c) {
                places.of_column.push_back({row + c, groups.of(i, 0), offset});
            }
        }
    }
    return places;
}

// Writes rows [row, row + rows) of one panel to the input pixels that they are the gradients of.
template <class T>
void store_planes(const KernelTable<AccumulateType<T>>& table, const ConvLayout& layout,
                  const GradLayout& source, const PixelGrid& grid, int64_t row, int64_t rows, int64_t panel,
                  const AccumulateType<T>* sums, T* image) {
    const ConvAxis& v = layout.vertical;
    const ConvAxis& h = layout.horizontal;
    const int64_t end = row + rows;
    for (int64_t r = row; r < end;) {
        const int64_t phase = r / layout.channels;
        const int64_t channel = r % layout.channels;
        const int64_t together = std::min(end - r, layout.channels - channel);
        const int64_t pv = phase / static_cast<int64_t>(h.phases.size());
        const int64_t ph = phase % static_cast<int64_t>(h.phases.size());
        int64_t top, bottom, left, right;
        v.inside(pv, &top, &bottom);
        h.inside(ph, &left, &right);
        const AccumulateType<T>* const from = sums + (r - row) * grid.panels.width;
        T* const to = image + channel * v.extent * h.extent;
        for_each_run(grid, panel, [&](int64_t line, int64_t offset, int64_t count, int64_t pixel) {
            const int64_t i = source.vertical.begin + line;
            const int64_t column = source.horizontal.begin + offset;
            const int64_t first = std::max(column, left);
            const int64_t live = std::min(column + count, right) - first;
            if (i < top || i >= bottom || live <= 0) return;
            unpack(table, from + pixel + first - column, grid.panels.width,
                   Samples<T>{to + v.source(pv, i) * h.extent + h.source(ph, first), h.stride,
                              v.extent * h.extent, live, together});
        });
        r += together;
    }
}

template <class T>
void grad_input(const PatternView& pattern, const Conv2dShape& shape, const void* values, const T* grad_y,
                T* grad_x, int threads) {
    using A = AccumulateType<T>;
    const KernelTable<A>& table = kernels<A>();
    const ComputeValues<T> weights(values, pattern.nnz);
    const ConvLayout layout(pattern, shape, table.lanes);
    const GradLayout source_layout(layout, table.lanes);
    const PixelGrid grid(source_layout.vertical.end - source_layout.vertical.begin,
                         source_layout.horizontal.end - source_layout.horizontal.begin, source_layout.pitch,
                         table.lanes);
    const TapPlaces places =
        backward_places(pattern, shape, layout, source_layout,
                        TapGroups::fitting<A>(grid, pattern.rows / shape.groups, pattern.kh,
                                              layout.vertical.tap_shift.back()));
    const TapList<A> list(pattern, places, [&](int64_t index) { return weights.data()[index]; });
    const int64_t source_size = pattern.rows * source_layout.size;
    const int64_t image_size = layout.channels * shape.height * shape.width;
    // With a stride, some input pixels may be read by no tap; and all of them when the padding alone is read.
    const bool covered = shape.stride[0] == 1 && shape.stride[1] == 1 && grid.height > 0 && grid.width > 0;
    if (!covered) std::fill(grad_x, grad_x + shape.batch * image_size, T{});
    if (grid.height <= 0 || grid.width <= 0) return;
    const auto source = [&](int64_t image, A* scratch) -> const A* {
        const int64_t out = layout.horizontal.out;
        for (int64_t n = 0; n < pattern.rows; ++n) {
            A* const plane = scratch + n * source_layout.size;
            A* const first =
                plane + source_layout.vertical.margin * source_layout.pitch + source_layout.horizontal.margin;
            std::fill(plane, first, A(0));
            pack_rows<T>(
                table,
                {grad_y + (image * pattern.rows + n) * layout.out_size(), 1, out, out, layout.vertical.out},
                first, source_layout.pitch, plane + source_layout.size);
        }
        std::fill(scratch + source_size, scratch + source_size + kMaxVectors * table.lanes, A(0));
        return scratch;
    };
    const auto store = [&](int64_t image, int64_t row, int64_t rows, int64_t panel, const A* sums) {
        store_planes<T>(table, layout, source_layout, grid, row, rows, panel, sums,
                        grad_x + image * image_size);
    };
    ListConvolution<A>(list, grid, nullptr, source_size, threads).run(shape.batch, source, store);
}

}  // namespace

void conv2d_grad_input(DType dtype, const PatternView& pattern, const Conv2dShape& shape, InputValues values,
                       InputValues grad_y, OutputValues grad_x, int threads) {
    check_conv2d(pattern, shape, "grad_x", grad_x, "grad_y", grad_y, threads);
    check_values("values", values, pattern.nnz);
    threads = conv2d_threads(pattern, shape, threads);
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        T* const to = static_cast<T*>(grad_x.data);
        if (grad_y.count == 0) {
            std::fill(to, to + grad_x.count, T{});
        } else {
            grad_input<T>(pattern, shape, values.data, static_cast<const T*>(grad_y.data), to, threads);
        }
    });
}

}  // namespace sparsekern
