// The pixels of a convolution's result in tiles: some rows by some columns that the registers hold at once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel_table.h"
#include "source_planes.h"

namespace sparsekern {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t multiple) { return divide_up(a, multiple) * multiple; }

struct ResultTile {
    int64_t row;
    int64_t column;
    int64_t rows;
    int64_t columns;
    int64_t vectors;  // that hold it, with its rows `pitch` apart
};

// Rows of whole vectors and as many of them as registers take: neighbouring kernel rows then read mostly the
// same lines. Where short rows would leave most of a vector empty, a tile is whole rows without gaps instead.
class ResultTiles {
public:
    ResultTiles(int64_t height, int64_t width, int64_t lanes)
        : height_(height), width_(width), lanes_(lanes) {
        const int64_t row_vectors = divide_up(width, lanes);
        dense_ = 2 * row_vectors * height > 3 * divide_up(width * height, lanes) && 2 * width <= room();
        if (dense_) {
            rows_ = shared_evenly(height, room() / width);
            pitch_ = width;
        } else {
            rows_ = shared_evenly(height, kMaxVectors);
            pitch_ = shared_evenly(row_vectors, kMaxVectors / rows_) * lanes;
        }
        across_ = divide_up(width, pitch_);
    }

    int64_t lanes() const { return lanes_; }
    // Rows of whole vectors keep what is rows apart aligned; others do not.
    TapPlanes vertical_planes() const { return dense_ ? TapPlanes::kOwn : TapPlanes::kShared; }
    int64_t rows() const { return rows_; }
    int64_t pitch() const { return pitch_; }
    int64_t count() const { return divide_up(height_, rows_) * across_; }
    int64_t max_vectors() const { return divide_up(rows_ * pitch_, lanes_); }

    ResultTile operator[](int64_t index) const {
        ResultTile tile;
        tile.row = index / across_ * rows_;
        tile.column = index % across_ * pitch_;
        tile.rows = std::min(rows_, height_ - tile.row);
        tile.columns = std::min(pitch_, width_ - tile.column);
        tile.vectors = divide_up((tile.rows - 1) * pitch_ + tile.columns, lanes_);
        return tile;
    }

private:
    int64_t room() const { return kMaxVectors * lanes_; }
    // The size of parts of at most `limit` each.
    static int64_t shared_evenly(int64_t size, int64_t limit) {
        return divide_up(size, divide_up(size, limit));
    }

    int64_t height_;
    int64_t width_;
    int64_t lanes_;
    bool dense_;
    int64_t rows_;
    int64_t pitch_;
    int64_t across_;
};

}  // namespace sparsekern
