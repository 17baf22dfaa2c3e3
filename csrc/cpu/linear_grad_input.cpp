#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#include "check.h"
#include "compute_values.h"
#include "linear_narrow.h"
#include "panel_product.h"
#include "sparsekern/linear.h"
#include "tile_rows.h"
#include "transposed_matrix.h"

namespace sparsekern {
namespace {

// A batch of one panel. Each row of the transpose is used once, so it is made where it is used, in the cache
// of the core that needs it.
template <class T>
class TransposedProduct {
    using A = AccumulateType<T>;

public:
    TransposedProduct(const PatternView& pattern, const A* values, const PanelShape& shape, int threads)
        : pattern_(pattern),
          values_(values),
          shape_(shape),
          threads_(threads),
          group_(near_tiles<A>(pattern.tile_size, shape.width)),
          table_(kernels<A>()),
          tiles_(static_cast<size_t>(pattern.tile_rows)) {
        std::iota(tiles_.begin(), tiles_.end(), 0);
    }

    void run(const InputMatrix& grad_y, const OutputMatrix& grad_x) const {
        const int64_t features = pattern_.rows * shape_.width;
        const int64_t sums = pattern_.tile_size * shape_.width;
        Team team;
#pragma omp parallel num_threads(threads_)
        {
            auto scratch = team.scratch([&] { return Buffer<A>(features + sums); });
            auto row = team.scratch([&] { return TransposedMatrix<A>(pattern_, 1); });
            if (scratch && row) {
                pack(table_, samples_of<T>(grad_y, 0, grad_y.rows, 0, pattern_.rows), scratch->data(),
                     shape_.width);
#pragma omp for schedule(static)
                for (int64_t c = 0; c < pattern_.tile_cols; ++c) {
                    row->load(values_, c, c + 1, 1);
                    A* const to = scratch->data() + features;
                    const int64_t column = c * pattern_.tile_size;
                    const int64_t columns = std::min(pattern_.tile_size, pattern_.cols - column);
                    sum_columns(*row, columns, scratch->data(), to);
                    unpack(table_, to, shape_.width, samples_of<T>(grad_x, 0, grad_x.rows, column, columns));
                }
            }
        }
        team.rethrow();
    }

private:
    void sum_columns(const TransposedMatrix<A>& row, int64_t columns, const A* features, A* sums) const {
        const TileMatrix& matrix = row.matrix();
        const int64_t count = matrix.tile_row_ptr[1];
        int64_t begin = 0;
        do {
            int64_t end = begin;
            while (end < count && matrix.tile_col[end] / group_ == matrix.tile_col[begin] / group_) ++end;
            const PanelWork<A> work = {&matrix, tiles_.data() + begin, end - begin, columns, features, sums};
            table_.accumulate[shape_.width / table_.lanes](work, row.values(), begin == 0, nullptr);
            begin = end;
        } while (begin < count);
    }

    const PatternView& pattern_;
    const A* values_;
    PanelShape shape_;
    int threads_;
    int64_t group_;
    const KernelTable<A>& table_;
    std::vector<int32_t> tiles_;  // 0, 1, 2, ...: those of a transposed row
};

}  // namespace

void linear_grad_input(DType dtype, const PatternView& pattern, InputValues values, InputMatrix grad_y,
                       OutputMatrix grad_x, int threads) {
    const int64_t size = element_bytes(dtype);
    check_threads(threads);
    check_values("values", values, pattern.nnz, size);
    check_matrix("grad_y", grad_y, grad_y.rows, pattern.rows, size);
    check_matrix("grad_x", grad_x, grad_y.rows, pattern.cols, size);
    if (grad_y.rows == 0) return;
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        using A = AccumulateType<T>;
        const ComputeValues<T> weights(values.data, values.count);
        if (is_narrow<T>(grad_y.rows)) {
            return narrow_grad_input<T>(as_matrix(pattern), weights.data(), grad_y, grad_x, threads);
        }
        const int worthwhile = linear_threads(threads, pattern, grad_y.rows);
        const PanelShape shape(grad_y.rows, kernels<A>().lanes, kMaxVectors);
        if (shape.panels == 1) {
            return TransposedProduct<T>(pattern, weights.data(), shape, worthwhile).run(grad_y, grad_x);
        }
        TransposedMatrix<A> transposed(pattern, pattern.tile_cols);
        transposed.load(weights.data(), 0, pattern.tile_cols, worthwhile);
        const TileRows<A> rows(transposed.matrix(), transposed.values(), nullptr, shape);
        PanelProduct<T, TileRows<A>>(rows, shape, worthwhile).run(grad_y, grad_x);
    });
}

}  // namespace sparsekern
