// The pixels of a convolution's result in tiles: some rows by some columns that the registers hold at once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel_table.h"
#include "source_planes.h"

namespace sparsekern {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t multiple) { return divide_up(a, multiple) * multiple; }
// The size of equal parts of at most `limit` each.
inline int64_t shared_evenly(int64_t size, int64_t limit) { return divide_up(size, divide_up(size, limit)); }

struct ResultTile {
    int64_t row;
    int64_t column;
    int64_t rows;
    int64_t columns;
    int64_t vectors;  // that hold it
};

// A tile is a column of vectors, one for each row, so that neighbouring kernel rows read mostly the same
// vectors; or a row of them, where there are too few rows. Where a row would leave most of a vector empty,
// a tile is `dense`: whole rows without gaps.
class ResultTiles {
public:
    ResultTiles(int64_t height, int64_t width, int64_t lanes, TapPlanes horizontal)
        : height_(height), width_(width), lanes_(lanes) {
        const int64_t room = kMaxVectors * lanes;
        const int64_t row_vectors = divide_up(width, lanes);
        dense_ = horizontal == TapPlanes::kOwn && 2 * width <= room &&
                 2 * row_vectors * height > 3 * divide_up(width * height, lanes);
        if (dense_) {
            rows_ = shared_evenly(height, room / width);
            columns_ = width;
        } else if (height >= std::min<int64_t>(row_vectors, kMaxVectors)) {
            rows_ = shared_evenly(height, kMaxVectors);
            columns_ = lanes;
        } else {
            rows_ = 1;
            columns_ = shared_evenly(row_vectors, kMaxVectors) * lanes;
        }
    }

    int64_t lanes() const { return lanes_; }
    bool dense() const { return dense_; }
    // The size of a whole tile. Its rows are `columns` apart.
    int64_t rows() const { return rows_; }
    int64_t columns() const { return columns_; }
    int64_t max_vectors() const { return divide_up(rows_ * columns_, lanes_); }

    int64_t down() const { return divide_up(height_, rows_); }
    int64_t across() const { return divide_up(width_, columns_); }
    ResultTile at(int64_t i, int64_t j) const {
        ResultTile tile;
        tile.row = i * rows_;
        tile.column = j * columns_;
        tile.rows = std::min(rows_, height_ - tile.row);
        tile.columns = std::min(columns_, width_ - tile.column);
        tile.vectors = divide_up((tile.rows - 1) * columns_ + tile.columns, lanes_);
        return tile;
    }

private:
    int64_t height_;
    int64_t width_;
    int64_t lanes_;
    bool dense_;
    int64_t rows_;
    int64_t columns_;
};

}  // namespace sparsekern
