#include "transposed_matrix.h"

#include <algorithm>

#include "kernel_table.h"

namespace sparsekern {

TileMatrix as_matrix(const PatternView& pattern) {
    TileMatrix m;
    m.tile_size = pattern.tile_size;
    m.rows = pattern.rows;
    m.cols = pattern.cols;
    m.tile_rows = pattern.tile_rows;
    m.tile_cols = pattern.tile_cols;
    m.tile_row_ptr = pattern.tile_row_ptr;
    m.tile_col = pattern.tile_col;
    m.tile_start = pattern.tile_start;
    m.row_offset = pattern.row_offset;
    m.bits = pattern.bits;
    return m;
}

namespace {

// What TileMatrix asks for in front of the bits.
constexpr int64_t kFrontBytes = 8;

std::vector<int32_t> rows_of_tiles(const PatternView& pattern) {
    std::vector<int32_t> row(static_cast<size_t>(pattern.tiles));
    for (int64_t r = 0; r < pattern.tile_rows; ++r) {
        for (int32_t t = pattern.tile_row_ptr[r]; t < pattern.tile_row_ptr[r + 1]; ++t) {
            row[static_cast<size_t>(t)] = static_cast<int32_t>(r);
        }
    }
    return row;
}

// The most of `size(tile)` that a run of `columns` columns of tiles adds up to.
template <class Size>
int64_t longest_run(const PatternView& pattern, int64_t columns, Size&& size) {
    int64_t most = 0;
    for (int64_t begin = 0; begin < pattern.tile_cols; begin += columns) {
        int64_t sum = 0;
        const int32_t last = pattern.tile_ptr_t[std::min(begin + columns, pattern.tile_cols)];
        for (int32_t i = pattern.tile_ptr_t[begin]; i < last; ++i) sum += size(pattern.tile_order_t[i]);
        most = std::max(most, sum);
    }
    return most;
}

int64_t most_tiles(const PatternView& pattern, int64_t columns) {
    return longest_run(pattern, columns, [](int32_t) { return int64_t{1}; });
}

int64_t most_values(const PatternView& pattern, int64_t columns) {
    return longest_run(pattern, columns,
                       [&](int32_t tile) { return pattern.tile_start[tile + 1] - pattern.tile_start[tile]; });
}

// Tiles are visited down a column, not as they lie in memory.
template <class A>
void prefetch_tile(const PatternView& pattern, const A* values, int64_t tile) {
    const int64_t tile_bytes = pattern.tile_size * pattern.tile_size / 8;
    const char* const bits = reinterpret_cast<const char*>(pattern.bits) + tile * tile_bytes;
    for (int64_t at = 0; at < tile_bytes; at += 64) __builtin_prefetch(bits + at);
    const char* value = reinterpret_cast<const char*>(values + pattern.tile_start[tile]);
    const char* const end = reinterpret_cast<const char*>(values + pattern.tile_start[tile + 1]);
    for (; value < end; value += 64) __builtin_prefetch(value);
}

}  // namespace

template <class A>
TransposedMatrix<A>::TransposedMatrix(const PatternView& pattern, int64_t tile_columns)
    : pattern_(pattern),
      tile_row_(rows_of_tiles(pattern)),
      tile_row_ptr_(static_cast<size_t>(tile_columns + 1)),
      tile_col_(static_cast<size_t>(most_tiles(pattern, tile_columns))),
      tile_start_(tile_col_.size() + 1),
      row_offset_(static_cast<int64_t>(tile_col_.size()) * pattern.tile_size),
      bits_(kFrontBytes + static_cast<int64_t>(tile_col_.size()) * pattern.tile_size * pattern.tile_size / 8),
      values_(most_values(pattern, tile_columns)) {}

template <class A>
void TransposedMatrix<A>::load(const A* values, int64_t begin, int64_t end, int threads) {
    const int64_t tile_bytes = pattern_.tile_size * pattern_.tile_size / 8;
    const int32_t* const order = pattern_.tile_order_t + pattern_.tile_ptr_t[begin];
    const int64_t tiles = pattern_.tile_ptr_t[end] - pattern_.tile_ptr_t[begin];
    for (int64_t c = begin; c <= end; ++c) {
        tile_row_ptr_[static_cast<size_t>(c - begin)] = pattern_.tile_ptr_t[c] - pattern_.tile_ptr_t[begin];
    }
    tile_start_[0] = 0;
    for (int64_t i = 0; i < tiles; ++i) {
        const size_t at = static_cast<size_t>(i);
        tile_col_[at] = tile_row_[static_cast<size_t>(order[i])];
        tile_start_[at + 1] =
            tile_start_[at] + pattern_.tile_start[order[i] + 1] - pattern_.tile_start[order[i]];
    }
    const KernelTable<A>& table = kernels<A>();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < tiles; ++i) {
        if (i + 1 < tiles) prefetch_tile(pattern_, values, order[i + 1]);
        table.transpose_tile({pattern_.tile_size, pattern_.bits + order[i] * tile_bytes,
                              values + pattern_.tile_start[order[i]],
                              bits_.data() + kFrontBytes + i * tile_bytes,
                              row_offset_.data() + i * pattern_.tile_size,
                              values_.data() + tile_start_[static_cast<size_t>(i)]});
    }
    matrix_ = {
        pattern_.tile_size, std::min(end * pattern_.tile_size, pattern_.cols) - begin * pattern_.tile_size,
        pattern_.rows,      end - begin,
        pattern_.tile_rows, tile_row_ptr_.data(),
        tile_col_.data(),   tile_start_.data(),
        row_offset_.data(), bits_.data() + kFrontBytes};
}

template class TransposedMatrix<float>;
template class TransposedMatrix<double>;

}  // namespace sparsekern
