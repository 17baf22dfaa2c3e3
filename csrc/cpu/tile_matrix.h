// The block-CSR side of a pattern, as the leaf kernels walk it: the pattern itself, or its transpose.
#pragma once

#include <cstdint>

namespace sparsekern {

// `bits` has at least eight readable bytes in front of it, so that a row of any tile size is one eight-byte
// load.
struct TileMatrix {
    int64_t tile_size = 0;
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t tile_rows = 0;
    int64_t tile_cols = 0;
    const int32_t* tile_row_ptr = nullptr;
    const int32_t* tile_col = nullptr;
    const int64_t* tile_start = nullptr;
    const int16_t* row_offset = nullptr;
    const unsigned char* bits = nullptr;
};

}  // namespace sparsekern
