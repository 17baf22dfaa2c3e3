// The kernels that pack 2:4 weights, which exist once per instruction set. Strides are in bytes.
#pragma once

#include <cstdint>

#include "sparsekern/two_four.h"

namespace sparsekern {

constexpr int kWeightTypes = 5;
// A strip's nibbles of one column fill a word of 64 bits.
constexpr int64_t kStripTiles = 16;

// Where the rows of a packing lie.
struct PackedRows {
    unsigned char* values = nullptr;
    int64_t value_stride = 0;
    unsigned char* metadata = nullptr;
    int64_t metadata_stride = 0;
    // Whole cache lines of values are written around the caches. Values are then aligned to those.
    bool streamed = false;
};

// Up to kStripTiles rows of `tiles` tiles each. The transposed packing's rows are the weight's columns; it is
// collected in `scratch` and written at the end, or left out where `scratch` is null.
struct TileStrip {
    const unsigned char* weight;
    int64_t stride;
    int64_t tile_rows;
    int64_t tiles;
    PackedRows packed;
    PackedRows transposed;
    uint64_t* scratch;
};

// Words of scratch for a strip. Its vectors are aligned as the widest are, and tiles come in eights at most.
constexpr int64_t scratch_words(int64_t tiles, int64_t element_size) {
    const int64_t values = 4 * element_size > 8 ? 4 * element_size : 8;
    return (tiles + 7) / 8 * 8 * 4 * (values + 1);
}

// Rows of `groups` groups each.
struct GroupRows {
    const unsigned char* weight;
    int64_t stride;
    int64_t rows;
    int64_t groups;
    PackedRows packed;
};

// By WeightType. Each returns whether all weights are finite; where not, what it has written means nothing.
struct PackTwoFour {
    bool (*tiles[kWeightTypes])(const TileStrip&);
    bool (*rows[kWeightTypes])(const GroupRows&);
};

}  // namespace sparsekern
