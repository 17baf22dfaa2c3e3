#include <algorithm>
#include <type_traits>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "compute_values.h"
#include "kernel_table.h"
#include "linear_narrow.h"
#include "panels.h"
#include "sparsekern/linear.h"
#include "tile_schedule.h"
#include "transposed_matrix.h"

namespace sparsekern {
namespace {

// Scratch for panels of x and grad_y. A constant, not a share per thread: where the batch is cut decides the
// order of the sums, and that must not depend on the number of threads.
constexpr int64_t kPanelBytes = int64_t{1} << 20;

// Below this many rows of tiles the batch is cut too, so that there is work for several threads.
constexpr int64_t kEnoughTasks = 16;

template <class T>
class GradValues {
    using A = AccumulateType<T>;

public:
    GradValues(const TileMatrix& matrix, int64_t nnz, const PanelShape& shape, int threads)
        : matrix_(matrix),
          nnz_(nnz),
          shape_(shape),
          splits_(std::clamp<int64_t>(kEnoughTasks / matrix.tile_rows, 1, shape.panels)),
          threads_(threads),
          table_(kernels<A>()),
          schedule_(TileSchedule::of_runs(
              matrix, std::max<int64_t>(1, kNearCacheBytes / (matrix.tile_size * shape.width *
                                                              static_cast<int64_t>(sizeof(A)))))),
          column_offset_(strided(matrix.tile_cols * matrix.tile_size, shape.width)) {}

    void run(const InputMatrix& grad_y, const InputMatrix& x, A* out) const {
        const int64_t together =
            std::max(splits_, PanelStack<T>::fitting(matrix_.rows + matrix_.cols, shape_, kPanelBytes));
        PanelStack<T> y_panels(matrix_.rows, shape_, together);
        PanelStack<T> x_panels(matrix_.cols, shape_, together);
        Buffer<A> partial(nnz_ * (splits_ - 1));
        for (int64_t first = 0; first < shape_.panels; first += together) {
            const int64_t count = std::min(together, shape_.panels - first);
            y_panels.fill(table_, grad_y, first, count, threads_);
            x_panels.fill(table_, x, first, count, threads_);
#pragma omp parallel for schedule(dynamic) num_threads(threads_) if (matrix_.tile_rows * splits_ > 1)
            for (int64_t task = 0; task < matrix_.tile_rows * splits_; ++task) {
                const int64_t split = task % splits_;
                A* to = split == 0 ? out : partial.data() + (split - 1) * nnz_;
                const int64_t begin = count * split / splits_;
                const int64_t end = count * (split + 1) / splits_;
                add_tile_row(task / splits_, y_panels, x_panels, begin, end, first == 0, to);
            }
        }
        for (int64_t split = 1; split < splits_; ++split) {
            const A* from = partial.data() + (split - 1) * nnz_;
            for (int64_t i = 0; i < nnz_; ++i) out[i] += from[i];
        }
    }

private:
    void add_tile_row(int64_t tile_row, const PanelStack<T>& y_panels, const PanelStack<T>& x_panels,
                      int64_t begin, int64_t end, bool overwrite, A* out) const {
        const auto dot = table_.dot[shape_.width / table_.lanes];
        const int64_t row = tile_row * matrix_.tile_size;
        if (overwrite && begin == end) {
            const int64_t from = matrix_.tile_start[matrix_.tile_row_ptr[tile_row]];
            std::fill(out + from, out + matrix_.tile_start[matrix_.tile_row_ptr[tile_row + 1]], A(0));
        }
        for (int64_t panel = begin; panel < end; ++panel) {
            for (int64_t g = 0; g < schedule_.groups(); ++g) {
                const PanelWork<A> work = {&matrix_,
                                           schedule_.tiles(tile_row, g),
                                           schedule_.count(tile_row, g),
                                           -1,
                                           std::min(matrix_.tile_size, matrix_.rows - row),
                                           column_offset_.data(),
                                           x_panels.panel(panel),
                                           const_cast<A*>(y_panels.panel(panel)) + row * shape_.width,
                                           shape_.width};
                if (work.tile_count > 0) dot(work, out, overwrite && panel == begin);
            }
        }
    }

    const TileMatrix& matrix_;
    int64_t nnz_;
    PanelShape shape_;
    int64_t splits_;
    int threads_;
    const KernelTable<A>& table_;
    TileSchedule schedule_;
    std::vector<int64_t> column_offset_;
};

}  // namespace

void linear_grad_values(DType dtype, const PatternView& pattern, InputMatrix grad_y, InputMatrix x,
                        OutputValues grad_values, int threads) {
    check_threads(threads);
    check_matrix("grad_y", grad_y, grad_y.rows, pattern.rows);
    check_matrix("x", x, grad_y.rows, pattern.cols);
    check_values("grad_values", grad_values, pattern.nnz);
    if (pattern.nnz == 0) return;
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        using A = AccumulateType<T>;
        ComputeOutput<T> out(grad_values.data, grad_values.count);
        if (x.rows == 0) {
            std::fill(out.data(), out.data() + pattern.nnz, A(0));
        } else if (is_narrow<T>(x.rows)) {
            narrow_grad_values<T>(as_matrix(pattern), grad_y, x, out.data(), threads);
        } else {
            const TileMatrix matrix = as_matrix(pattern);
            const int worthwhile =
                worthwhile_threads(threads, x.rows * pattern.nnz, x.rows * (pattern.rows + pattern.cols));
            const PanelShape shape(x.rows, kernels<A>().lanes, kMaxVectors);
            GradValues<T>(matrix, pattern.nnz, shape, worthwhile).run(grad_y, x, out.data());
        }
        out.finish();
    });
}

}  // namespace sparsekern
