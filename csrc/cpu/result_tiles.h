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
    int64_t vectors;  // that hold it, with its rows `pitch` apart
};

// The pixels of a tile are a run of vectors, with its rows `pitch` apart in the result's sums as in the
// planes that it reads, so that a tap is one offset.
//
// Where each tap has its own planes, a tile is a column of vectors, one for each row: neighbouring kernel
// rows then read mostly the same vectors. Where that would leave most of a vector empty, it is `dense`: whole
// rows without gaps. Where taps share planes, it is whole rows and what taps `reach` to the right of them.
// And if there are too few rows for that, or rows too long, it is a part of one row.
class ResultTiles {
public:
    ResultTiles(int64_t height, int64_t width, int64_t lanes, TapPlanes planes, int64_t reach)
        : height_(height), width_(width), lanes_(lanes) {
        const int64_t room = kMaxVectors * lanes;
        const int64_t row_vectors = divide_up(width, lanes);
        const bool own = planes == TapPlanes::kOwn;
        dense_ = own && 2 * width <= room && 2 * row_vectors * height > 3 * divide_up(width * height, lanes);
        if (dense_) {
            pitch_ = columns_ = width;
            rows_ = shared_evenly(height, room / width);
        } else if (own && height >= std::min<int64_t>(row_vectors, kMaxVectors)) {
            pitch_ = columns_ = lanes;
            rows_ = shared_evenly(height, kMaxVectors);
        } else if (!own && 2 * width + reach <= room) {
            columns_ = width;
            pitch_ = width + reach;
            rows_ = shared_evenly(height, (room - width) / pitch_ + 1);
        } else {
            columns_ = shared_evenly(row_vectors, kMaxVectors) * lanes;
            pitch_ = round_up(columns_ + reach, lanes);
            rows_ = 1;
        }
    }

    int64_t lanes() const { return lanes_; }
    // Rows of whole vectors keep what is rows apart aligned; dense ones do not.
    TapPlanes vertical_planes() const { return dense_ ? TapPlanes::kOwn : TapPlanes::kShared; }
    int64_t rows() const { return rows_; }
    int64_t pitch() const { return pitch_; }
    int64_t max_vectors() const { return divide_up((rows_ - 1) * pitch_ + columns_, lanes_); }

    int64_t down() const { return divide_up(height_, rows_); }
    int64_t across() const { return divide_up(width_, columns_); }
    ResultTile at(int64_t i, int64_t j) const {
        ResultTile tile;
        tile.row = i * rows_;
        tile.column = j * columns_;
        tile.rows = std::min(rows_, height_ - tile.row);
        tile.columns = std::min(columns_, width_ - tile.column);
        tile.vectors = divide_up((tile.rows - 1) * pitch_ + tile.columns, lanes_);
        return tile;
    }

private:
    int64_t height_;
    int64_t width_;
    int64_t lanes_;
    bool dense_;
    int64_t rows_;
    int64_t columns_;
    int64_t pitch_;
};

}  // namespace sparsekern
