// Arithmetic of a pattern that stores its grid of tiles complete: every place follows from the sizes.
#pragma once

#include <cstdint>

#include "sparsekern/pattern.h"

namespace sparsekern {

SPARSEKERN_HOST_DEVICE inline PatternSizes complete_sizes(int64_t rows, int64_t cols, int64_t tile_size,
                                                          int64_t nnz) {
    PatternSizes s;
    s.tile_size = tile_size;
    s.rows = rows;
    s.cols = cols;
    s.tile_rows = (rows + tile_size - 1) / tile_size;
    s.tile_cols = (cols + tile_size - 1) / tile_size;
    s.tiles = s.tile_rows * s.tile_cols;
    s.nnz = nnz;
    return s;
}

// Tile sizes are powers of two.
SPARSEKERN_HOST_DEVICE constexpr int tile_shift(int64_t tile_size) {
    return tile_size == 64 ? 6 : tile_size == 32 ? 5 : tile_size == 16 ? 4 : 3;
}

// The place of a position among the bits of a complete grid.
SPARSEKERN_HOST_DEVICE inline int64_t grid_bit(int64_t tile_size, int64_t tile_cols, int64_t row,
                                               int64_t col) {
    const int shift = tile_shift(tile_size);
    const int64_t inside = tile_size - 1;
    const int64_t tile = (row >> shift) * tile_cols + (col >> shift);
    return (((tile << shift) + (row & inside)) << shift) + (col & inside);
}

SPARSEKERN_HOST_DEVICE inline bool test_bit(const uint32_t* bits, int64_t bit) {
    return (bits[bit / 32] >> (bit % 32)) & 1;
}

// How a dense weight of shape (rows, cin, kh, kw) lies beside its matrix, whose columns are in (kh, kw, cin)
// order.
struct WeightOrder {
    int64_t cols;
    int64_t cin;
    int64_t positions;  // kh * kw
};

// The column of the matrix that an element of a row of the dense weight is in.
SPARSEKERN_HOST_DEVICE inline int64_t column_of(const WeightOrder& order, int64_t place) {
    if (order.positions == 1) return place;
    const auto narrow = static_cast<uint32_t>(place), positions = static_cast<uint32_t>(order.positions);
    return narrow % positions * order.cin + narrow / positions;
}

}  // namespace sparsekern
