#include "sparsekern/conv2d.h"

#include "compute_values.h"
#include "conv2d_check.h"
#include "conv2d_input.h"
#include "list_convolution.h"

namespace sparsekern {

namespace {

template <class T>
void convolve(const PatternView& pattern, const Conv2dShape& shape, const void* values, const T* x,
              const void* bias, T* y, int threads) {
    using A = AccumulateType<T>;
    const KernelTable<A>& table = kernels<A>();
    const ComputeValues<T> weights(values, pattern.nnz);
    const ComputeValues<T> start(bias, bias != nullptr ? pattern.rows : 0);
    const SourceWindow window = input_window(pattern, shape, table.lanes, sizeof(A));
    const TapList<A> list(pattern, window, input_places(pattern, shape, window), weights.data(), threads);
    const int64_t out_width = shape.out_extent(1, pattern.kw);
    const int64_t out_size = shape.out_extent(0, pattern.kh) * out_width;
    const auto store = [&](int64_t image, const ResultTile& tile, int64_t row, int64_t rows, const A* sums) {
        T* const to = y + (image * pattern.rows + row) * out_size + tile.row * out_width + tile.column;
        const int64_t room = tile.vectors * table.lanes;
        unpack_pixels(table, sums, {room, window.tiles().pitch()},
                      PixelBlock<T>{to, out_size, out_width, 1, rows, tile.rows, tile.columns});
    };
    ListConvolution<T>(window, list, start.data(), threads).run(x, shape.batch, store);
}

}  // namespace

void conv2d(DType dtype, const PatternView& pattern, const Conv2dShape& given, InputValues values,
            InputValues x, InputValues bias, OutputValues y, int threads) {
    const int64_t size = element_bytes(dtype);
    check_conv2d(pattern, given, "x", x, "y", y, size, threads);
    check_values("values", values, pattern.nnz, size);
    if (bias.data != nullptr) check_values("bias", bias, pattern.rows, size);
    if (y.count == 0) return;
    threads = conv2d_threads(pattern, x.count, y.count, threads);
    const Conv2dShape shape = flattened(pattern, given);
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        convolve<T>(pattern, shape, values.data, static_cast<const T*>(x.data), bias.data,
                    static_cast<T*>(y.data), threads);
    });
}

}  // namespace sparsekern
