// The tiles of a pattern as a matrix to walk, as they are and transposed.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "sparsekern/pattern.h"
#include "tile_matrix.h"

namespace sparsekern {

TileMatrix as_matrix(const PatternView& pattern);

// Some rows of tiles of a pattern's transpose with their values: a few of its columns of tiles, or all.
template <class A>
class TransposedMatrix {
public:
    // Scratch for any run of `tile_columns` columns of tiles.
    TransposedMatrix(const PatternView& pattern, int64_t tile_columns);

    // Transposes columns of tiles [begin, end) of the pattern given before.
    void load(const A* values, int64_t begin, int64_t end, int threads);

    // What was loaded, from its first row on and as wide as the whole transpose.
    const TileMatrix& matrix() const { return matrix_; }
    const A* values() const { return values_.data(); }

private:
    const PatternView& pattern_;
    TileMatrix matrix_;
    std::vector<int32_t> tile_row_;  // of each of the pattern's tiles
    std::vector<int32_t> tile_row_ptr_;
    std::vector<int32_t> tile_col_;
    std::vector<int64_t> tile_start_;
    Buffer<int16_t> row_offset_;
    Buffer<unsigned char> bits_;
    Buffer<A> values_;
};

}  // namespace sparsekern
