#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "check.h"
#include "compute_values.h"
#include "kernel_table.h"
#include "linear_narrow.h"
#include "panels.h"
#include "sparsekern/linear.h"
#include "team.h"
#include "tile_schedule.h"
#include "transposed_matrix.h"

namespace sparsekern {
namespace {

// With fewer tiles than this the batch is cut into parts, so that there is work for several threads. How it
// is cut decides the order of the sums, so that must not depend on the number of threads.
constexpr int64_t kEnoughTiles = 16;

// A block of rows of tiles and groups of columns: what one thread computes for a part of the batch.
struct Block {
    int64_t row_begin, row_end;
    int64_t group_begin, group_end;
};

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
          group_(near_tiles<A>(matrix.tile_size, shape.width)),
          schedule_(TileSchedule::of_runs(matrix, group_)),
          splits_(
              std::clamp<int64_t>(kEnoughTiles / (matrix.tile_rows * schedule_.groups()), 1, shape.panels)) {
        // The longer side is cut first: a block packs the rows and the columns that it needs for itself.
        const int64_t groups = schedule_.groups();
        const bool by_rows = matrix.tile_rows >= groups;
        const int64_t first = std::min<int64_t>(threads, by_rows ? matrix.tile_rows : groups);
        const int64_t second =
            std::min<int64_t>((threads + first - 1) / first, by_rows ? groups : matrix.tile_rows);
        row_parts_ = by_rows ? first : second;
        group_parts_ = by_rows ? second : first;
    }

    void run(const InputMatrix& grad_y, const InputMatrix& x, A* out) const {
        Buffer<A> partial(nnz_ * (splits_ - 1));
        const int64_t blocks = row_parts_ * group_parts_;
        Team team;
#pragma omp parallel num_threads(threads_) if (blocks * splits_ > 1)
        {
            auto scratch = team.scratch([&] { return Buffer<A>(scratch_size()); });
            if (scratch) {
#pragma omp for schedule(static)
                for (int64_t task = 0; task < blocks * splits_; ++task) {
                    const int64_t split = task % splits_;
                    A* const to = split == 0 ? out : partial.data() + (split - 1) * nnz_;
                    add_block(block(task / splits_), grad_y, x, shape_.panels * split / splits_,
                              shape_.panels * (split + 1) / splits_, *scratch, to);
                }
            }
        }
        team.rethrow();
        for (int64_t split = 1; split < splits_; ++split) {
            const A* from = partial.data() + (split - 1) * nnz_;
            for (int64_t i = 0; i < nnz_; ++i) out[i] += from[i];
        }
    }

private:
    Block block(int64_t index) const {
        const int64_t r = index / group_parts_;
        const int64_t g = index % group_parts_;
        return {matrix_.tile_rows * r / row_parts_, matrix_.tile_rows * (r + 1) / row_parts_,
                part_of_groups(g), part_of_groups(g + 1)};
    }
    int64_t part_of_groups(int64_t part) const { return schedule_.groups() * part / group_parts_; }

    // A panel of the longest block's rows and one of its columns.
    int64_t scratch_size() const {
        const int64_t tile_rows = matrix_.tile_rows / row_parts_ + 1;
        const int64_t tile_cols = (schedule_.groups() / group_parts_ + 1) * group_;
        return (tile_rows + tile_cols) * matrix_.tile_size * shape_.width;
    }

    void add_block(const Block& block, const InputMatrix& grad_y, const InputMatrix& x, int64_t first,
                   int64_t last, Buffer<A>& scratch, A* out) const {
        const int64_t size = matrix_.tile_size;
        const int64_t row = block.row_begin * size;
        const int64_t rows = std::min(block.row_end * size, matrix_.rows) - row;
        const int64_t column = block.group_begin * group_ * size;
        const int64_t columns = std::min(block.group_end * group_ * size, matrix_.cols) - column;
        A* const y_panel = scratch.data();
        A* const x_panel = y_panel + rows * shape_.width;
        for (int64_t panel = first; panel < last; ++panel) {
            const int64_t begin = shape_.begin(panel);
            const int64_t count = shape_.count(panel, x.rows);
            pack(table_, samples_of<T>(grad_y, begin, count, row, rows), y_panel, shape_.width);
            pack(table_, samples_of<T>(x, begin, count, column, columns), x_panel, shape_.width);
            for (int64_t r = block.row_begin; r < block.row_end; ++r) {
                for (int64_t g = block.group_begin; g < block.group_end; ++g) {
                    add_tiles(r, g, y_panel + (r * size - row) * shape_.width, x_panel, column,
                              panel == first, out);
                }
            }
        }
    }

    void add_tiles(int64_t tile_row, int64_t group, A* y_rows, const A* x_panel, int64_t first_column,
                   bool overwrite, A* out) const {
        const PanelWork<A> work = {&matrix_,
                                   schedule_.tiles(tile_row, group),
                                   schedule_.count(tile_row, group),
                                   std::min(matrix_.tile_size, matrix_.rows - tile_row * matrix_.tile_size),
                                   x_panel,
                                   y_rows,
                                   0,
                                   first_column};
        if (work.tile_count > 0) table_.dot[shape_.width / table_.lanes](work, out, overwrite);
    }

    const TileMatrix& matrix_;
    int64_t nnz_;
    PanelShape shape_;
    int threads_;
    const KernelTable<A>& table_;
    int64_t group_;  // columns of tiles whose features the nearest cache holds
    TileSchedule schedule_;
    int64_t splits_;
    int64_t row_parts_;
    int64_t group_parts_;
};

}  // namespace

void linear_grad_values(DType dtype, const PatternView& pattern, InputMatrix grad_y, InputMatrix x,
                        OutputValues grad_values, int threads) {
    const int64_t size = element_bytes(dtype);
    check_threads(threads);
    check_matrix("grad_y", grad_y, grad_y.rows, pattern.rows, size);
    check_matrix("x", x, grad_y.rows, pattern.cols, size);
    check_values("grad_values", grad_values, pattern.nnz, size);
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
            const int worthwhile = linear_threads(threads, pattern, x.rows);
            const PanelShape shape(x.rows, kernels<A>().lanes, kMaxVectors);
            GradValues<T>(matrix, pattern.nnz, shape, worthwhile).run(grad_y, x, out.data());
        }
        out.finish();
    });
}

}  // namespace sparsekern
