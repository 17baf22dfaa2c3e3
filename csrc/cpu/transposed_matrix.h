// The tiles of a pattern as a matrix to walk, as they are and transposed.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "sparsekern/pattern.h"
#include "tile_matrix.h"

namespace sparsekern {

TileMatrix as_matrix(const PatternView& pattern);

// The transpose of a pattern with its values, in scratch of nnz size.
template <class A>
class TransposedMatrix {
public:
    TransposedMatrix(const PatternView& pattern, const A* values, int threads);

    const TileMatrix& matrix() const { return matrix_; }
    const A* values() const { return values_.data(); }

private:
    void place_tiles(const PatternView& pattern);

    TileMatrix matrix_;
    std::vector<int32_t> tile_col_;
    std::vector<int64_t> tile_start_;
    std::vector<int16_t> row_offset_;
    std::vector<unsigned char> bits_;
    Buffer<A> values_;
};

}  // namespace sparsekern
