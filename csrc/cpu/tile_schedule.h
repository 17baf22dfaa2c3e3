// The order in which a row of tiles is visited: by groups of tile columns whose features fit the nearest
// cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tile_matrix.h"

namespace sparsekern {

constexpr int64_t kNearCacheBytes = 32 << 10;
constexpr int64_t kPrivateCacheBytes = 512 << 10;

// Columns of tiles whose features, `width` samples each, the nearest cache holds.
template <class A>
int64_t near_tiles(int64_t tile_size, int64_t width) {
    return std::max<int64_t>(1, kNearCacheBytes / (tile_size * width * static_cast<int64_t>(sizeof(A))));
}

class TileSchedule {
public:
    // `group[c]` is the group of tile column c, in 0 .. groups - 1.
    TileSchedule(const TileMatrix& matrix, const std::vector<int32_t>& group, int64_t groups)
        : groups_(groups), order_(static_cast<size_t>(matrix.tile_row_ptr[matrix.tile_rows])) {
        ptr_.assign(static_cast<size_t>(matrix.tile_rows * groups + 1), 0);
        for (int64_t r = 0; r < matrix.tile_rows; ++r) {
            int32_t* count = ptr_.data() + r * groups + 1;
            for (int32_t t = matrix.tile_row_ptr[r]; t < matrix.tile_row_ptr[r + 1]; ++t) {
                ++count[group[static_cast<size_t>(matrix.tile_col[t])]];
            }
        }
        for (size_t i = 1; i < ptr_.size(); ++i) ptr_[i] += ptr_[i - 1];
        std::vector<int32_t> next(ptr_.begin(), ptr_.end() - 1);
        for (int64_t r = 0; r < matrix.tile_rows; ++r) {
            for (int32_t t = matrix.tile_row_ptr[r]; t < matrix.tile_row_ptr[r + 1]; ++t) {
                const int64_t g = group[static_cast<size_t>(matrix.tile_col[t])];
                order_[static_cast<size_t>(next[static_cast<size_t>(r * groups + g)]++)] = t;
            }
        }
    }

    // Runs of neighbouring tile columns, each of `columns` tiles.
    static TileSchedule of_runs(const TileMatrix& matrix, int64_t columns) {
        std::vector<int32_t> group(static_cast<size_t>(matrix.tile_cols));
        for (int64_t c = 0; c < matrix.tile_cols; ++c) group[c] = static_cast<int32_t>(c / columns);
        return TileSchedule(matrix, group, std::max<int64_t>(1, (matrix.tile_cols + columns - 1) / columns));
    }

    int64_t groups() const { return groups_; }
    const int32_t* tiles(int64_t tile_row, int64_t group) const {
        return order_.data() + ptr_[static_cast<size_t>(tile_row * groups_ + group)];
    }
    int64_t count(int64_t tile_row, int64_t group) const {
        const size_t at = static_cast<size_t>(tile_row * groups_ + group);
        return ptr_[at + 1] - ptr_[at];
    }

private:
    int64_t groups_;
    std::vector<int32_t> order_;
    std::vector<int32_t> ptr_;
};

}  // namespace sparsekern
