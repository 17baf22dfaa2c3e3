// The complete grid of tiles that update_topology writes: its bits first, all else from them.
#pragma once

#include <cstdint>

#include "sparsekern/grid.h"
#include "sparsekern/pattern.h"

namespace sparsekern {

class TopologyGrid {
public:
    // `data` holds the words of a pattern of these sizes.
    TopologyGrid(const PatternView& pattern, int32_t* data);

    const PatternSizes& sizes() const { return sizes_; }

    // The bits of tile (row, col) of the grid.
    unsigned char* tile_bits(int64_t tile_row, int64_t tile_col) {
        const int64_t bytes = sizes_.tile_size * sizes_.tile_size / 8;
        return reinterpret_cast<unsigned char*>(bits_) + (tile_row * sizes_.tile_cols + tile_col) * bytes;
    }
    int64_t bit(int64_t row, int64_t col) const {
        return grid_bit(sizes_.tile_size, sizes_.tile_cols, row, col);
    }
    bool test(int64_t bit) const {
        return (__atomic_load_n(bits_ + bit / 32, __ATOMIC_RELAXED) >> (bit % 32)) & 1;
    }
    // Threads may set bits of one word side by side.
    void set(int64_t bit) {
        __atomic_fetch_or(bits_ + bit / 32, uint32_t{1} << (bit % 32), __ATOMIC_RELAXED);
    }
    void set_index(int64_t index) { set(bit(index / sizes_.cols, index % sizes_.cols)); }

    // Writes header and index from the bits. Throws std::invalid_argument when they are not nnz bits.
    void finish(const PatternView& pattern, int threads);

private:
    PatternSizes sizes_;
    int32_t* data_;
    uint32_t* bits_;
};

}  // namespace sparsekern
