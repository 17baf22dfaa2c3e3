#include "transposed_matrix.h"

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

// What TileMatrix asks for in front of the bits.
static constexpr int64_t kFrontBytes = 8;

template <class A>
TransposedMatrix<A>::TransposedMatrix(const PatternView& pattern, const A* values, int threads)
    : values_(pattern.nnz) {
    place_tiles(pattern);
    const int64_t tile_bytes = pattern.tile_size * pattern.tile_size / 8;
    row_offset_.resize(static_cast<size_t>(pattern.tiles * pattern.tile_size));
    bits_.resize(static_cast<size_t>(kFrontBytes + pattern.tiles * tile_bytes));
    const KernelTable<A>& table = kernels<A>();
#pragma omp parallel for schedule(static) num_threads(threads) if (pattern.tiles > 16)
    for (int64_t i = 0; i < pattern.tiles; ++i) {
        const int64_t tile = pattern.tile_order_t[i];
        table.transpose_tile({pattern.tile_size, pattern.bits + tile * tile_bytes,
                              values + pattern.tile_start[tile], bits_.data() + kFrontBytes + i * tile_bytes,
                              row_offset_.data() + i * pattern.tile_size,
                              values_.data() + tile_start_[static_cast<size_t>(i)]});
    }
    matrix_.tile_size = pattern.tile_size;
    matrix_.rows = pattern.cols;
    matrix_.cols = pattern.rows;
    matrix_.tile_rows = pattern.tile_cols;
    matrix_.tile_cols = pattern.tile_rows;
    matrix_.tile_row_ptr = pattern.tile_ptr_t;
    matrix_.tile_col = tile_col_.data();
    matrix_.tile_start = tile_start_.data();
    matrix_.row_offset = row_offset_.data();
    matrix_.bits = bits_.data() + kFrontBytes;
}

// The pattern lists its tiles by column; here each of them learns its row and where its values begin.
template <class A>
void TransposedMatrix<A>::place_tiles(const PatternView& pattern) {
    std::vector<int32_t> tile_row(static_cast<size_t>(pattern.tiles));
    for (int64_t r = 0; r < pattern.tile_rows; ++r) {
        for (int32_t t = pattern.tile_row_ptr[r]; t < pattern.tile_row_ptr[r + 1]; ++t) {
            tile_row[static_cast<size_t>(t)] = static_cast<int32_t>(r);
        }
    }
    tile_col_.resize(static_cast<size_t>(pattern.tiles));
    tile_start_.resize(static_cast<size_t>(pattern.tiles + 1));
    tile_start_[0] = 0;
    for (int64_t i = 0; i < pattern.tiles; ++i) {
        const int32_t t = pattern.tile_order_t[i];
        tile_col_[static_cast<size_t>(i)] = tile_row[static_cast<size_t>(t)];
        tile_start_[static_cast<size_t>(i + 1)] =
            tile_start_[static_cast<size_t>(i)] + pattern.tile_start[t + 1] - pattern.tile_start[t];
    }
}

template class TransposedMatrix<float>;
template class TransposedMatrix<double>;

}  // namespace sparsekern
