// The index of the complete grid, from its bits.
#pragma once

#include "topology_blocks.cuh"

namespace sparsekern::cuda {

// Rows of tiles that a block scans at a time: a whole number of tiles of any size.
constexpr int kScanRows = 256;

// row_offset, the number of values of each tile (where tile_start will be), and the tiles' places.
__global__ void __launch_bounds__(kThreads, 4) count_tiles_kernel(Table table, int64_t blocks) {
    __shared__ int counts[2][kScanRows];
    const Share share = share_of_block(table, kTilePhase, blocks);
    const Layer& layer = table.layers[share.layer];
    const PatternSections at = pattern_sections(layer.grid);
    const int tile_size = static_cast<int>(layer.grid.tile_size), shift = tile_shift(tile_size);
    const auto* const bits = reinterpret_cast<const unsigned char*>(layer.result + at.bits);
    auto* const row_offset = reinterpret_cast<int16_t*>(layer.result + at.row_offset);
    auto* const tile_start = reinterpret_cast<int64_t*>(layer.result + at.tile_start);
    const int64_t rows = layer.grid.tiles * tile_size;
    for (int64_t base = share.block * kScanRows; base < rows; base += share.blocks * kScanRows) {
        for (int i = threadIdx.x; i < kScanRows; i += blockDim.x) {
            counts[0][i] = base + i < rows ? __popcll(row_word(bits, base + i, tile_size)) : 0;
        }
        __syncthreads();
        int now = 0;
        for (int width = 1; width < tile_size; width *= 2, now ^= 1) {
            for (int i = threadIdx.x; i < kScanRows; i += blockDim.x) {
                const bool inside = (i & (tile_size - 1)) >= width;
                counts[now ^ 1][i] = counts[now][i] + (inside ? counts[now][i - width] : 0);
            }
            __syncthreads();
        }
        for (int i = threadIdx.x; i < kScanRows; i += blockDim.x) {
            const int64_t row = base + i;
            if (row >= rows) continue;
            const int in_tile = i & (tile_size - 1);
            row_offset[row] = static_cast<int16_t>(in_tile == 0 ? 0 : counts[now][i - 1]);
            if (in_tile != tile_size - 1) continue;
            const int64_t tile = row >> shift;
            const int64_t tile_row = tile / layer.grid.tile_cols, tile_col = tile % layer.grid.tile_cols;
            tile_start[tile + 1] = counts[now][i];
            layer.result[at.tile_col + tile] = static_cast<int32_t>(tile_col);
            layer.result[at.tile_order_t + tile_col * layer.grid.tile_rows + tile_row] =
                static_cast<int32_t>(tile);
        }
        __syncthreads();
    }
}

__device__ inline void clear_words(int32_t* data, int64_t begin, int64_t end) {
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) data[i] = 0;
}

// tile_start, the header, the two pointer sections, and zeros between sections: one block for each layer.
__global__ void __launch_bounds__(kMostThreads, 1) finish_grid_kernel(Table table) {
    const Layer& layer = table.layers[blockIdx.x];
    const PatternSizes& grid = layer.grid;
    const PatternSections at = pattern_sections(grid);
    int32_t* const data = layer.result;
    auto* const tile_start = reinterpret_cast<int64_t*>(data + at.tile_start);
    const int64_t each = (grid.tiles + blockDim.x - 1) / blockDim.x;
    const int64_t begin = threadIdx.x * each < grid.tiles ? threadIdx.x * each : grid.tiles;
    const int64_t end = begin + each < grid.tiles ? begin + each : grid.tiles;
    int64_t sum = 0;
    for (int64_t t = begin; t < end; ++t) sum += tile_start[t + 1];
    int64_t running = block_scan(sum);
    for (int64_t t = begin; t < end; ++t) {
        running += tile_start[t + 1];
        tile_start[t + 1] = running;
    }
    if (threadIdx.x == 0) tile_start[0] = 0;
    // The header is the old one but for the number of tiles.
    for (int i = threadIdx.x; i < kPatternHeaderWords; i += blockDim.x) {
        data[i] = i == kWordTiles ? static_cast<int32_t>(grid.tiles) : layer.from_header[i];
    }
    for (int64_t i = threadIdx.x; i <= grid.tile_rows; i += blockDim.x) {
        data[at.tile_row_ptr + i] = static_cast<int32_t>(i * grid.tile_cols);
    }
    for (int64_t j = threadIdx.x; j <= grid.tile_cols; j += blockDim.x) {
        data[at.tile_ptr_t + j] = static_cast<int32_t>(j * grid.tile_rows);
    }
    clear_words(data, at.tile_start + 2 * (grid.tiles + 1), at.tile_row_ptr);
    clear_words(data, at.tile_row_ptr + grid.tile_rows + 1, at.tile_col);
    clear_words(data, at.tile_col + grid.tiles, at.tile_ptr_t);
    clear_words(data, at.tile_ptr_t + grid.tile_cols + 1, at.tile_order_t);
    clear_words(data, at.tile_order_t + grid.tiles, at.row_offset);
    clear_words(data, at.row_offset + grid.tiles * grid.tile_size / 2, at.bits);
    clear_words(data, at.bits + grid.tiles * grid.tile_size * grid.tile_size / 32, at.total_words);
}

}  // namespace sparsekern::cuda
