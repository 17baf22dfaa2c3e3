// The sections of a pattern in device memory, and finding tiles and bits in them.
#pragma once

#include <cstdint>

#include "sparsekern/transfer_cuda.h"

namespace sparsekern::cuda {

// The sections that kernels read.
struct DeviceSections {
    const int64_t* tile_start;
    const int32_t* tile_row_ptr;
    const int32_t* tile_col;
    const int16_t* row_offset;
    const unsigned char* bits;
};

inline DeviceSections sections(const DevicePattern& pattern) {
    const PatternSections at = pattern_sections(pattern.sizes);
    return {reinterpret_cast<const int64_t*>(pattern.data + at.tile_start), pattern.data + at.tile_row_ptr,
            pattern.data + at.tile_col, reinterpret_cast<const int16_t*>(pattern.data + at.row_offset),
            reinterpret_cast<const unsigned char*>(pattern.data + at.bits)};
}

// The bits of row `row`, counted over all tiles; a row is one word of tile_size bits.
__device__ inline uint64_t row_word(const unsigned char* bits, int64_t row, int tile_size) {
    switch (tile_size) {
        case 64:
            return reinterpret_cast<const uint64_t*>(bits)[row];
        case 32:
            return reinterpret_cast<const uint32_t*>(bits)[row];
        case 16:
            return reinterpret_cast<const uint16_t*>(bits)[row];
        default:
            return bits[row];
    }
}

__device__ inline void set_row_word(unsigned char* bits, int64_t row, int tile_size, uint64_t word) {
    switch (tile_size) {
        case 64:
            reinterpret_cast<uint64_t*>(bits)[row] = word;
            break;
        case 32:
            reinterpret_cast<uint32_t*>(bits)[row] = static_cast<uint32_t>(word);
            break;
        case 16:
            reinterpret_cast<uint16_t*>(bits)[row] = static_cast<uint16_t>(word);
            break;
        default:
            bits[row] = static_cast<unsigned char>(word);
    }
}

// The number of elements of sorted[begin, end) that are at most `key`.
template <class T, class Key>
__device__ inline int count_at_most(const T* sorted, int begin, int end, Key key) {
    int low = begin;
    int high = end;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (sorted[middle] <= key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low - begin;
}

// The tile of `pattern` at a place of the grid of tiles, or -1 where it stores none.
__device__ inline int64_t find_tile(const DeviceSections& pattern, int tile_row, int tile_col) {
    const int begin = pattern.tile_row_ptr[tile_row];
    const int end = pattern.tile_row_ptr[tile_row + 1];
    const int tile = begin + count_at_most(pattern.tile_col, begin, end, tile_col) - 1;
    return tile >= begin && pattern.tile_col[tile] == tile_col ? tile : -1;
}

}  // namespace sparsekern::cuda
