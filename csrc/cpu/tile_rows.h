// The rows of a pattern's matrix, or of its transpose, for a PanelProduct.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel_table.h"
#include "panels.h"
#include "tile_matrix.h"
#include "tile_schedule.h"

namespace sparsekern {

template <class A>
class TileRows {
public:
    TileRows(const TileMatrix& matrix, const A* values, const A* start, const PanelShape& shape)
        : matrix_(matrix),
          values_(values),
          start_(start),
          width_(shape.width),
          table_(kernels<A>()),
          schedule_(TileSchedule::of_runs(matrix, near_tiles<A>(matrix.tile_size, width_))) {}

    int64_t rows() const { return matrix_.rows; }
    int64_t cols() const { return matrix_.cols; }
    int64_t unit() const { return matrix_.tile_size; }

    // Group by group, so that the features of a group are read from the nearest cache by every row.
    void sum(const A* features, int64_t begin, int64_t end, A* sums) const {
        const auto accumulate = table_.accumulate[width_ / table_.lanes];
        const int64_t size = matrix_.tile_size;
        for (int64_t g = 0; g < schedule_.groups(); ++g) {
            for (int64_t r = begin / size; r * size < end; ++r) {
                const int64_t first = std::max(begin, r * size);
                PanelWork<A> work = {&matrix_,
                                     schedule_.tiles(r, g),
                                     schedule_.count(r, g),
                                     std::min(size, end - r * size),
                                     features,
                                     sums + (first - begin) * width_,
                                     first - r * size};
                if (work.tile_count == 0 && g > 0) continue;
                if ((r + 1) * size < end) {
                    work.next_tiles = schedule_.tiles(r + 1, g);
                    work.next_count = schedule_.count(r + 1, g);
                }
                accumulate(work, values_, g == 0, start_ != nullptr ? start_ + first : nullptr);
            }
        }
    }

private:
    const TileMatrix& matrix_;
    const A* values_;
    const A* start_;
    int64_t width_;
    const KernelTable<A>& table_;
    TileSchedule schedule_;
};

}  // namespace sparsekern
