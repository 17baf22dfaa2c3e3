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

// Values of the pattern in its rows [row_begin, row_end), an upper bound by whole rows of tiles.
int64_t count_values(const PatternView& pattern, int64_t row_begin, int64_t row_end) {
    const int64_t first = pattern.tile_row_ptr[row_begin / pattern.tile_size];
    const int64_t last = pattern.tile_row_ptr[(row_end + pattern.tile_size - 1) / pattern.tile_size];
    return pattern.tile_start[last] - pattern.tile_start[first];
}

}  // namespace

template <class A>
TransposedMatrix<A>::TransposedMatrix(const PatternView& pattern, const A* values, int64_t row_begin,
                                      int64_t row_end, int threads)
    : values_(count_values(pattern, row_begin, row_end)) {
    place_tiles(pattern, row_begin, row_end);
    const int64_t tiles = static_cast<int64_t>(tile_col_.size());
    row_offset_.resize(static_cast<size_t>(tiles * pattern.tile_size));
    bits_.resize(static_cast<size_t>(kFrontBytes + tiles * pattern.tile_size * pattern.tile_size / 8));
#pragma omp parallel for schedule(static) num_threads(threads) if (tiles > 16)
    for (int64_t i = 0; i < tiles; ++i) transpose_tile(pattern, values, i, row_begin, row_end);
    matrix_.tile_size = pattern.tile_size;
    matrix_.rows = pattern.cols;
    matrix_.cols = pattern.rows;
    matrix_.tile_rows = pattern.tile_cols;
    matrix_.tile_cols = pattern.tile_rows;
    matrix_.tile_row_ptr = tile_row_ptr_.data();
    matrix_.tile_col = tile_col_.data();
    matrix_.tile_start = tile_start_.data();
    matrix_.row_offset = row_offset_.data();
    matrix_.bits = bits_.data() + kFrontBytes;
}

// Lists the tiles of the rows by column, then by row. A tile keeps room for all its values, also those of rows
// outside the range, so that places are known before the bits are looked at.
template <class A>
void TransposedMatrix<A>::place_tiles(const PatternView& pattern, int64_t row_begin, int64_t row_end) {
    const int64_t first_row = row_begin / pattern.tile_size;
    const int64_t last_row = (row_end + pattern.tile_size - 1) / pattern.tile_size;
    const int64_t begin = pattern.tile_row_ptr[first_row];
    const int64_t end = pattern.tile_row_ptr[last_row];
    tile_row_ptr_.assign(static_cast<size_t>(pattern.tile_cols + 1), 0);
    for (int64_t t = begin; t < end; ++t) ++tile_row_ptr_[static_cast<size_t>(pattern.tile_col[t] + 1)];
    for (int64_t c = 0; c < pattern.tile_cols; ++c) tile_row_ptr_[c + 1] += tile_row_ptr_[c];
    tile_col_.resize(static_cast<size_t>(end - begin));
    source_tile_.resize(static_cast<size_t>(end - begin));
    std::vector<int32_t> next(tile_row_ptr_.begin(), tile_row_ptr_.end() - 1);
    for (int64_t r = first_row; r < last_row; ++r) {
        for (int32_t t = pattern.tile_row_ptr[r]; t < pattern.tile_row_ptr[r + 1]; ++t) {
            const int32_t place = next[static_cast<size_t>(pattern.tile_col[t])]++;
            tile_col_[static_cast<size_t>(place)] = static_cast<int32_t>(r);
            source_tile_[static_cast<size_t>(place)] = t;
        }
    }
    tile_start_.resize(static_cast<size_t>(end - begin + 1));
    tile_start_[0] = 0;
    for (int64_t i = 0; i < end - begin; ++i) {
        const int32_t t = source_tile_[static_cast<size_t>(i)];
        tile_start_[i + 1] = tile_start_[i] + pattern.tile_start[t + 1] - pattern.tile_start[t];
    }
}

template <class A>
void TransposedMatrix<A>::transpose_tile(const PatternView& pattern, const A* values, int64_t index,
                                         int64_t row_begin, int64_t row_end) {
    const int64_t size = pattern.tile_size;
    const int64_t tile = source_tile_[static_cast<size_t>(index)];
    const int64_t top = tile_col_[static_cast<size_t>(index)] * size;
    const int64_t tile_bytes = size * size / 8;
    kernels<A>().transpose_tile({size, std::max<int64_t>(0, row_begin - top), std::min(size, row_end - top),
                                 pattern.bits + tile * tile_bytes, values + pattern.tile_start[tile],
                                 bits_.data() + kFrontBytes + index * tile_bytes, row_offset_.data() + index * size,
                                 values_.data() + tile_start_[static_cast<size_t>(index)]});
}

template class TransposedMatrix<float>;
template class TransposedMatrix<double>;

}  // namespace sparsekern
