#include "sparsekern/linear.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "compute_values.h"
#include "kernel_table.h"
#include "linear_narrow.h"
#include "panels.h"
#include "tile_schedule.h"
#include "transposed_matrix.h"

namespace sparsekern {
namespace {

// y = x M^T + start for a batch, M being a pattern's matrix or its transpose.
template <class T>
class PanelProduct {
    using A = AccumulateType<T>;

public:
    PanelProduct(const TileMatrix& matrix, const A* values, const A* start, int threads)
        : matrix_(matrix), values_(values), start_(start), threads_(threads), table_(kernels<A>()) {}

    void run(const InputMatrix& x, const OutputMatrix& y) const {
        if (x.rows == 0 || matrix_.rows == 0) return;
        const PanelShape shape(x.rows, table_.lanes, kMaxVectors);
        const int64_t group =
            kNearCacheBytes / (matrix_.tile_size * shape.width * static_cast<int64_t>(sizeof(A)));
        const Batch batch = {x, y, shape, TileSchedule::of_runs(matrix_, std::max<int64_t>(1, group)),
                             strided(matrix_.tile_cols * matrix_.tile_size, shape.width)};
        if (shape.panels >= 2 * threads_ || shape.panels % threads_ == 0) {
            run_panels(batch);
        } else {
            run_rows(batch);
        }
    }

private:
    struct Batch {
        const InputMatrix& x;
        const OutputMatrix& y;
        PanelShape shape;
        TileSchedule schedule;
        std::vector<int64_t> column_offset;
    };

    // Panels for every thread: each is packed, used and unpacked where it is in a core's own cache.
    void run_panels(const Batch& batch) const {
        const int64_t chunk = rows_together(batch.shape);
#pragma omp parallel num_threads(threads_) if (batch.shape.panels > 1)
        {
            Buffer<A> features(matrix_.cols * batch.shape.width);
            Buffer<A> sums(chunk * matrix_.tile_size * batch.shape.width);
#pragma omp for schedule(dynamic)
            for (int64_t panel = 0; panel < batch.shape.panels; ++panel) {
                pack(table_,
                     samples_of<T>(batch.x, batch.shape.begin(panel), batch.shape.count(panel, batch.x.rows),
                                   0, matrix_.cols),
                     features.data(), batch.shape.width);
                for (int64_t begin = 0; begin < matrix_.tile_rows; begin += chunk) {
                    multiply(batch, panel, features.data(), begin, std::min(begin + chunk, matrix_.tile_rows),
                             sums.data());
                }
            }
        }
    }

    // Few panels: their rows of tiles are shared out.
    void run_rows(const Batch& batch) const {
        const int64_t panels = batch.shape.panels;
        const int64_t even = (matrix_.tile_rows * panels + 4 * threads_ - 1) / (4 * threads_);
        const int64_t chunk = std::min(rows_together(batch.shape), std::max<int64_t>(1, even));
        const int64_t chunks = (matrix_.tile_rows + chunk - 1) / chunk;
        PanelStack<T> stack(matrix_.cols, batch.shape, panels);
        stack.fill(table_, batch.x, 0, panels, threads_);
#pragma omp parallel num_threads(threads_) if (panels * chunks > 1)
        {
            Buffer<A> sums(chunk * matrix_.tile_size * batch.shape.width);
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < panels * chunks; ++task) {
                const int64_t begin = task % chunks * chunk;
                multiply(batch, task / chunks, stack.panel(task / chunks), begin,
                         std::min(begin + chunk, matrix_.tile_rows), sums.data());
            }
        }
    }

    // Rows of tiles whose sums stay in a core's own cache.
    int64_t rows_together(const PanelShape& shape) const {
        const int64_t row_bytes = matrix_.tile_size * shape.width * static_cast<int64_t>(sizeof(A));
        return std::clamp<int64_t>(kPrivateCacheBytes / 4 / row_bytes, 1, matrix_.tile_rows);
    }

    // The rows of tiles [begin, end) for one panel, into y.
    void multiply(const Batch& batch, int64_t panel, const A* features, int64_t begin, int64_t end,
                  A* sums) const {
        PanelWork<A> work = {&matrix_, nullptr,          0, -1, 0, batch.column_offset.data(), features,
                             sums,     batch.shape.width};
        multiply_rows(work, begin, end, batch.shape.width, batch.schedule);
        const int64_t row = begin * matrix_.tile_size;
        const int64_t rows = std::min(end * matrix_.tile_size, matrix_.rows) - row;
        unpack(table_, sums, batch.shape.width,
               samples_of<T>(batch.y, batch.shape.begin(panel), batch.shape.count(panel, batch.y.rows), row,
                             rows));
    }

    // Group by group, so that the features of a group are read from the nearest cache by every row.
    void multiply_rows(PanelWork<A>& work, int64_t begin, int64_t end, int64_t width,
                       const TileSchedule& schedule) const {
        const auto accumulate = table_.accumulate[width / table_.lanes];
        A* const sums = work.y;
        for (int64_t g = 0; g < schedule.groups(); ++g) {
            for (int64_t r = begin; r < end; ++r) {
                work.tiles = schedule.tiles(r, g);
                work.tile_count = schedule.count(r, g);
                if (work.tile_count == 0 && g > 0) continue;
                work.next_tile =
                    r + 1 < end && schedule.count(r + 1, g) > 0 ? schedule.tiles(r + 1, g)[0] : -1;
                const int64_t row = r * matrix_.tile_size;
                work.rows = std::min(matrix_.tile_size, matrix_.rows - row);
                work.y = sums + (r - begin) * matrix_.tile_size * width;
                accumulate(work, values_, g == 0, start_ != nullptr ? start_ + row : nullptr);
            }
        }
    }

    const TileMatrix& matrix_;
    const A* values_;
    const A* start_;
    int threads_;
    const KernelTable<A>& table_;
};

}  // namespace

void linear(DType dtype, const PatternView& pattern, InputValues values, InputMatrix x, InputValues bias,
            OutputMatrix y, int threads) {
    check_threads(threads);
    check_values("values", values, pattern.nnz);
    check_matrix("x", x, x.rows, pattern.cols);
    check_matrix("y", y, x.rows, pattern.rows);
    if (bias.data != nullptr) check_values("bias", bias, pattern.rows);
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        const ComputeValues<T> weights(values.data, values.count);
        const ComputeValues<T> start(bias.data, bias.data != nullptr ? bias.count : 0);
        const TileMatrix matrix = as_matrix(pattern);
        if (is_narrow<T>(x.rows)) {
            return narrow_linear<T>(matrix, weights.data(), start.data(), x, y, threads);
        }
        const int worthwhile =
            worthwhile_threads(threads, x.rows * pattern.nnz, x.rows * (pattern.rows + pattern.cols));
        PanelProduct<T>(matrix, weights.data(), start.data(), worthwhile).run(x, y);
    });
}

void linear_grad_input(DType dtype, const PatternView& pattern, InputValues values, InputMatrix grad_y,
                       OutputMatrix grad_x, int threads) {
    check_threads(threads);
    check_values("values", values, pattern.nnz);
    check_matrix("grad_y", grad_y, grad_y.rows, pattern.rows);
    check_matrix("grad_x", grad_x, grad_y.rows, pattern.cols);
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        const ComputeValues<T> weights(values.data, values.count);
        if (is_narrow<T>(grad_y.rows)) {
            return narrow_grad_input<T>(as_matrix(pattern), weights.data(), grad_y, grad_x, threads);
        }
        const int worthwhile = worthwhile_threads(threads, grad_y.rows * pattern.nnz,
                                                  grad_y.rows * (pattern.rows + pattern.cols));
        const TransposedMatrix<AccumulateType<T>> transposed(pattern, weights.data(), worthwhile);
        PanelProduct<T>(transposed.matrix(), transposed.values(), nullptr, worthwhile).run(grad_y, grad_x);
    });
}

}  // namespace sparsekern
