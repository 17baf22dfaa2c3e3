// y = x M^T for a batch, panel by panel; M is a pattern's matrix or its transpose.
#pragma once

#include <algorithm>
#include <cstdint>

#include "buffer.h"
#include "kernel_table.h"
#include "panels.h"
#include "team.h"
#include "tile_schedule.h"

namespace sparsekern {

// The least part of a row of tiles that a thread takes: whole vectors of y.
constexpr int64_t kLeastRows = 16;

// y = x M^T + start.
template <class T>
class PanelProduct {
    using A = AccumulateType<T>;

public:
    PanelProduct(const TileMatrix& matrix, const A* values, const A* start, int threads)
        : matrix_(matrix), values_(values), start_(start), threads_(threads), table_(kernels<A>()) {}

    void run(const InputMatrix& x, const OutputMatrix& y) const {
        if (x.rows == 0 || matrix_.rows == 0) return;
        const PanelShape shape(x.rows, table_.lanes, kMaxVectors);
        const int64_t group = near_tiles<A>(matrix_.tile_size, shape.width);
        const Batch batch = {x, y, shape, TileSchedule::of_runs(matrix_, group)};
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
    };

    // Panels for every thread: each is packed, used and unpacked where it is in a core's own cache.
    void run_panels(const Batch& batch) const {
        const int64_t chunk = rows_together(batch.shape);
        Team team;
#pragma omp parallel num_threads(threads_) if (batch.shape.panels > 1)
        {
            auto scratch = team.scratch([&] { return Buffer<A>(scratch_size(batch, chunk)); });
            if (scratch) {
#pragma omp for schedule(static)
                for (int64_t panel = 0; panel < batch.shape.panels; ++panel) {
                    pack_panel(batch, panel, scratch->data());
                    for (int64_t row = 0; row < matrix_.rows; row += chunk) {
                        multiply(batch, panel, *scratch, row, std::min(row + chunk, matrix_.rows));
                    }
                }
            }
        }
        team.rethrow();
    }

    // Few panels: their rows are shared out. Each thread packs the panels that it needs for itself: to read
    // what another core has written costs more than packing it again.
    void run_rows(const Batch& batch) const {
        const int64_t panels = batch.shape.panels;
        const int64_t even = (matrix_.rows * panels + 2 * threads_ - 1) / (2 * threads_);
        const int64_t unit = even < 2 * matrix_.tile_size ? kLeastRows : matrix_.tile_size;
        const int64_t chunk = std::min(rows_together(batch.shape), (even + unit - 1) / unit * unit);
        const int64_t chunks = (matrix_.rows + chunk - 1) / chunk;
        Team team;
#pragma omp parallel num_threads(threads_) if (panels * chunks > 1)
        {
            auto scratch = team.scratch([&] { return Buffer<A>(scratch_size(batch, chunk)); });
            if (scratch) {
                int64_t packed = -1;
#pragma omp for schedule(static)
                for (int64_t task = 0; task < panels * chunks; ++task) {
                    const int64_t panel = task / chunks;
                    if (panel != packed) pack_panel(batch, panel, scratch->data());
                    packed = panel;
                    const int64_t row = task % chunks * chunk;
                    multiply(batch, panel, *scratch, row, std::min(row + chunk, matrix_.rows));
                }
            }
        }
        team.rethrow();
    }

    // One panel of features and the sums of `rows` rows.
    int64_t scratch_size(const Batch& batch, int64_t rows) const {
        return (matrix_.cols + rows) * batch.shape.width;
    }

    void pack_panel(const Batch& batch, int64_t panel, A* features) const {
        pack(table_,
             samples_of<T>(batch.x, batch.shape.begin(panel), batch.shape.count(panel, batch.x.rows), 0,
                           matrix_.cols),
             features, batch.shape.width);
    }

    // Whole rows of tiles whose sums stay in a core's own cache, as a number of rows.
    int64_t rows_together(const PanelShape& shape) const {
        const int64_t row_bytes = matrix_.tile_size * shape.width * static_cast<int64_t>(sizeof(A));
        return std::clamp<int64_t>(kPrivateCacheBytes / 4 / row_bytes, 1, matrix_.tile_rows) *
               matrix_.tile_size;
    }

    // Rows [begin, end) for the panel in `scratch`, into y.
    void multiply(const Batch& batch, int64_t panel, Buffer<A>& scratch, int64_t begin, int64_t end) const {
        A* const sums = scratch.data() + matrix_.cols * batch.shape.width;
        sum_rows(batch, scratch.data(), begin, end, sums);
        unpack(table_, sums, batch.shape.width,
               samples_of<T>(batch.y, batch.shape.begin(panel), batch.shape.count(panel, batch.y.rows), begin,
                             end - begin));
    }

    // Group by group, so that the features of a group are read from the nearest cache by every row.
    void sum_rows(const Batch& batch, const A* features, int64_t begin, int64_t end, A* sums) const {
        const auto accumulate = table_.accumulate[batch.shape.width / table_.lanes];
        const TileSchedule& schedule = batch.schedule;
        const int64_t size = matrix_.tile_size;
        for (int64_t g = 0; g < schedule.groups(); ++g) {
            for (int64_t r = begin / size; r * size < end; ++r) {
                const int64_t first = std::max(begin, r * size);
                PanelWork<A> work = {&matrix_,
                                     schedule.tiles(r, g),
                                     schedule.count(r, g),
                                     std::min(size, end - r * size),
                                     features,
                                     sums + (first - begin) * batch.shape.width,
                                     first - r * size};
                if (work.tile_count == 0 && g > 0) continue;
                if ((r + 1) * size < end) {
                    work.next_tiles = schedule.tiles(r + 1, g);
                    work.next_count = schedule.count(r + 1, g);
                }
                accumulate(work, values_, g == 0, start_ != nullptr ? start_ + first : nullptr);
            }
        }
    }

    const TileMatrix& matrix_;
    const A* values_;
    const A* start_;
    int threads_;
    const KernelTable<A>& table_;
};

}  // namespace sparsekern
