#include <algorithm>
#include <type_traits>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "compute_values.h"
#include "kernel_table.h"
#include "panels.h"
#include "sparsekern/linear.h"
#include "tile_schedule.h"
#include "transposed_matrix.h"

namespace sparsekern {
namespace {

// Scratch for panels of x and grad_y. A constant, not a share per thread: where the batch is cut decides the
// order of the sums, and that must not depend on the number of threads.
constexpr int64_t kPanelBytes = int64_t{1} << 20;

// With fewer tasks than this the batch is cut too, so that there is work for several threads.
constexpr int64_t kEnoughTasks = 16;

// A task is a row of tiles, a group of its tiles and a part of the batch.
template <class T>
class GradValues {
    using A = AccumulateType<T>;

public:
    GradValues(const TileMatrix& matrix, int64_t nnz, const PanelShape& shape, int threads)
        : matrix_(matrix),
          nnz_(nnz),
          shape_(shape),
          threads_(threads),
          table_(kernels<A>()),
          schedule_(TileSchedule::of_runs(
              matrix, std::max<int64_t>(1, kNearCacheBytes / (matrix.tile_size * shape.width *
                                                              static_cast<int64_t>(sizeof(A)))))),
          splits_(
              std::clamp<int64_t>(kEnoughTasks / (matrix.tile_rows * schedule_.groups()), 1, shape.panels)),
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
            add_panels(y_panels, x_panels, count, first == 0, out, partial.data());
        }
        for (int64_t split = 1; split < splits_; ++split) {
            const A* from = partial.data() + (split - 1) * nnz_;
            for (int64_t i = 0; i < nnz_; ++i) out[i] += from[i];
        }
    }

private:
    // A thread keeps the same tasks for every part of the batch, and so their gradients in its own cache.
    void add_panels(const PanelStack<T>& y_panels, const PanelStack<T>& x_panels, int64_t count,
                    bool overwrite, A* out, A* partial) const {
        const int64_t groups = schedule_.groups();
        const int64_t tasks = matrix_.tile_rows * splits_ * groups;
#pragma omp parallel for schedule(static) num_threads(threads_) if (tasks > 1)
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t tile_row = task / groups / splits_;
            const int64_t split = task / groups % splits_;
            const int64_t begin = count * split / splits_;
            A* const to = split == 0 ? out : partial + (split - 1) * nnz_;
            for (int64_t panel = begin; panel < count * (split + 1) / splits_; ++panel) {
                add_tiles(tile_row, task % groups, y_panels.panel(panel), x_panels.panel(panel),
                          overwrite && panel == begin, to);
            }
        }
    }

    void add_tiles(int64_t tile_row, int64_t group, const A* y_panel, const A* x_panel, bool overwrite,
                   A* out) const {
        const int64_t row = tile_row * matrix_.tile_size;
        const PanelWork<A> work = {&matrix_,
                                   schedule_.tiles(tile_row, group),
                                   schedule_.count(tile_row, group),
                                   std::min(matrix_.tile_size, matrix_.rows - row),
                                   column_offset_.data(),
                                   x_panel,
                                   const_cast<A*>(y_panel) + row * shape_.width,
                                   shape_.width};
        if (work.tile_count > 0) table_.dot[shape_.width / table_.lanes](work, out, overwrite);
    }

    const TileMatrix& matrix_;
    int64_t nnz_;
    PanelShape shape_;
    int threads_;
    const KernelTable<A>& table_;
    TileSchedule schedule_;
    int64_t splits_;
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
    threads = worthwhile_threads(threads, x.rows * pattern.nnz, x.rows * (pattern.rows + pattern.cols));
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        using A = AccumulateType<T>;
        ComputeOutput<T> out(grad_values.data, grad_values.count);
        if (x.rows == 0) {
            std::fill(out.data(), out.data() + pattern.nnz, A(0));
        } else {
            const TileMatrix matrix = as_matrix(pattern);
            const PanelShape shape(x.rows, kernels<A>().lanes, kMaxVectors);
            GradValues<T>(matrix, pattern.nnz, shape, threads).run(grad_y, x, out.data());
        }
        out.finish();
    });
}

}  // namespace sparsekern
