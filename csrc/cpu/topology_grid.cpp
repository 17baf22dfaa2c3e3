#include "topology_grid.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "pattern_walk.h"

namespace sparsekern {

TopologyGrid::TopologyGrid(const PatternView& pattern, int32_t* data)
    : sizes_(complete_sizes(pattern.rows, pattern.cols, pattern.tile_size, pattern.nnz)),
      data_(data),
      bits_(reinterpret_cast<uint32_t*>(data + pattern_sections(sizes_).bits)) {}

void TopologyGrid::finish(const PatternView& pattern, int threads) {
    const PatternSections at = pattern_sections(sizes_);
    const int64_t tile_size = sizes_.tile_size, tiles = sizes_.tiles;
    std::fill(data_, data_ + at.row_offset, 0);
    std::fill(data_ + at.row_offset + tiles * tile_size / 2, data_ + at.bits, 0);
    std::fill(data_ + at.bits + tiles * tile_size * tile_size / 32, data_ + at.total_words, 0);

    // The header is the old one but for the number of tiles.
    const auto* old = reinterpret_cast<const int32_t*>(pattern.tile_start) - kPatternHeaderWords;
    std::copy_n(old, kPatternHeaderWords, data_);
    data_[kWordTiles] = static_cast<int32_t>(tiles);

    auto* const tile_start = reinterpret_cast<int64_t*>(data_ + at.tile_start);
    auto* const row_offset = reinterpret_cast<int16_t*>(data_ + at.row_offset);
    threads = useful_threads(threads, tiles * tile_size);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t row = t / sizes_.tile_cols, col = t % sizes_.tile_cols;
        const unsigned char* const bits = tile_bits(row, col);
        int64_t running = 0;
        for (int64_t r = 0; r < tile_size; ++r) {
            uint64_t word = 0;
            std::memcpy(&word, bits + r * tile_size / 8, static_cast<size_t>(tile_size / 8));
            row_offset[t * tile_size + r] = static_cast<int16_t>(running);
            running += popcount64(word);
        }
        tile_start[t + 1] = running;
        data_[at.tile_col + t] = static_cast<int32_t>(col);
        data_[at.tile_order_t + col * sizes_.tile_rows + row] = static_cast<int32_t>(t);
    }
    for (int64_t t = 0; t < tiles; ++t) tile_start[t + 1] += tile_start[t];
    for (int64_t i = 0; i <= sizes_.tile_rows; ++i) {
        data_[at.tile_row_ptr + i] = static_cast<int32_t>(i * sizes_.tile_cols);
    }
    for (int64_t j = 0; j <= sizes_.tile_cols; ++j) {
        data_[at.tile_ptr_t + j] = static_cast<int32_t>(j * sizes_.tile_rows);
    }
    if (tile_start[tiles] != sizes_.nnz) throw std::invalid_argument("positions: one is named twice");
}

}  // namespace sparsekern
