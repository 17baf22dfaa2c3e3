// The first half of update_topology on the GPU: the threshold of the values, and the bits that stay.
#pragma once

#include "topology_blocks.cuh"

namespace sparsekern::cuda {

// The row of a stored tile that a thread looks at.
struct StoredRow {
    int64_t tile;
    int64_t row;    // of the matrix
    int64_t value;  // the first of this row
    int64_t first;  // matrix index of bit 0
    uint64_t bits;
};

// Row `i` of the pattern's stored tiles, counted over all of them.
__device__ inline StoredRow stored_row(const Layer& layer, int64_t i) {
    const int tile_size = static_cast<int>(layer.grid.tile_size);
    StoredRow at;
    at.tile = i >> tile_shift(tile_size);
    const int64_t tile_row =
        layer.from_tiles == layer.grid.tiles
            ? at.tile / layer.grid.tile_cols
            : count_at_most(layer.from.tile_row_ptr, 1, static_cast<int>(layer.grid.tile_rows), at.tile);
    at.row = (tile_row << tile_shift(tile_size)) + (i & (tile_size - 1));
    at.value = layer.from.tile_start[at.tile] + layer.from.row_offset[i];
    at.first = at.row * layer.grid.cols + static_cast<int64_t>(layer.from.tile_col[at.tile]) * tile_size;
    at.bits = row_word(layer.from.bits, i, tile_size);
    return at;
}

__device__ inline int lowest_bit(uint64_t word) { return __ffsll(static_cast<long long>(word)) - 1; }

// One digit of the search for the values that go.
__global__ void __launch_bounds__(kThreads, 2) drop_level_kernel(Table table, int64_t blocks) {
    const Share share = share_of_block(table, kValuePhase, blocks);
    const Layer& layer = table.layers[share.layer];
    Selection* const selection = &table.states[share.layer].drop;
    const Selection s = *selection;
    if (s.done) return;
    unsigned* const bins = BlockHistogram::clear();
    const int shift = digit_shift(s);
    const auto key_of_value = [&](int64_t i) {
        return load_key(layer.values, layer.value_type, Order::smallest_magnitude, i);
    };
    if (in_key_digits(s)) {
        for (int64_t i = share.first_thread(); i < layer.grid.nnz; i += share.threads()) {
            const uint64_t key = key_of_value(i);
            if (key >= s.low && key <= s.high) atomicAdd(bins + bin_of(s, shift, key, 0), 1u);
        }
    } else {
        const int64_t rows = layer.from_tiles * layer.grid.tile_size;
        for (int64_t i = share.first_thread(); i < rows; i += share.threads()) {
            const StoredRow at = stored_row(layer, i);
            int64_t value = at.value;
            for (uint64_t bits = at.bits; bits != 0; bits &= bits - 1, ++value) {
                const uint64_t key = key_of_value(value);
                const int64_t index = at.first + lowest_bit(bits);
                if (undecided(s, key, index)) atomicAdd(bins + bin_of(s, shift, key, index), 1u);
            }
        }
    }
    BlockHistogram::finish(table, share.layer, selection, share.blocks);
}

// The bits of the grid that stay; each thread writes rows of tiles.
__global__ void __launch_bounds__(kThreads, 4) keep_kernel(Table table, int64_t blocks) {
    const Share share = share_of_block(table, kTilePhase, blocks);
    const Layer& layer = table.layers[share.layer];
    const Selection dropped = table.states[share.layer].drop;
    const int tile_size = static_cast<int>(layer.grid.tile_size), shift = tile_shift(tile_size);
    auto* const to = reinterpret_cast<unsigned char*>(result_bits(layer));
    const int64_t rows = layer.grid.tiles * tile_size;
    for (int64_t i = share.first_thread(); i < rows; i += share.threads()) {
        int64_t tile = i >> shift;
        if (layer.from_tiles != layer.grid.tiles) {
            tile = find_tile(layer.from, static_cast<int>(tile / layer.grid.tile_cols),
                             static_cast<int>(tile % layer.grid.tile_cols));
        }
        uint64_t kept = 0;
        if (tile >= 0) {
            const StoredRow at = stored_row(layer, (tile << shift) + (i & (tile_size - 1)));
            int64_t value = at.value;
            for (uint64_t bits = at.bits; bits != 0; bits &= bits - 1, ++value) {
                const uint64_t key =
                    load_key(layer.values, layer.value_type, Order::smallest_magnitude, value);
                if (!taken(dropped, key, at.first + lowest_bit(bits))) kept |= bits & (~bits + 1);
            }
        }
        set_row_word(to, i, tile_size, kept);
    }
}

}  // namespace sparsekern::cuda
