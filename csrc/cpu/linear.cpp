#include "sparsekern/linear.h"

#include <type_traits>

#include "check.h"
#include "compute_values.h"
#include "linear_narrow.h"
#include "panel_product.h"
#include "tile_rows.h"
#include "transposed_matrix.h"

namespace sparsekern {

void linear(DType dtype, const PatternView& pattern, InputValues values, InputMatrix x, InputValues bias,
            OutputMatrix y, int threads) {
    const int64_t size = element_bytes(dtype);
    check_threads(threads);
    check_values("values", values, pattern.nnz, size);
    check_matrix("x", x, x.rows, pattern.cols, size);
    check_matrix("y", y, x.rows, pattern.rows, size);
    if (bias.data != nullptr) check_values("bias", bias, pattern.rows, size);
    if (x.rows == 0) return;
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        using A = AccumulateType<T>;
        const ComputeValues<T> weights(values.data, values.count);
        const ComputeValues<T> start(bias.data, bias.data != nullptr ? bias.count : 0);
        const TileMatrix matrix = as_matrix(pattern);
        if (is_narrow<T>(x.rows)) {
            return narrow_linear<T>(matrix, weights.data(), start.data(), x, y, threads);
        }
        const int worthwhile = linear_threads(threads, pattern, x.rows);
        const PanelShape shape(x.rows, kernels<A>().lanes, kMaxVectors);
        const TileRows<A> rows(matrix, weights.data(), start.data(), shape);
        PanelProduct<T, TileRows<A>>(rows, shape, worthwhile).run(x, y);
    });
}

}  // namespace sparsekern
