// Two passes over a row source: count tiles and values, then write the packed pattern.
#include "sparsekern/pattern_build.h"

#include <omp.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "pattern_walk.h"

namespace sparsekern {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void check_size(const char* name, int64_t value) {
    if (value < 1 || value > kMaxInt32) {
        throw std::invalid_argument(std::string(name) + " must be between 1 and 2147483647, got " +
                                    std::to_string(value));
    }
}

// The bits of tile column `tile_col` in a row of words; a tile never straddles two words.
uint64_t tile_bits(const uint64_t* row, int64_t tile_col, int64_t tile_size) {
    const int64_t first = tile_col * tile_size;
    return (row[first / 64] >> (first % 64)) & low_bits(tile_size);
}

}  // namespace

void check_weight_shape(const WeightShape& shape) {
    if (shape.dims != 2 && shape.dims != 4)
        throw std::invalid_argument("a weight must have 2 or 4 dimensions");
    if (shape.dims == 2 && (shape.kh != 1 || shape.kw != 1)) {
        throw std::invalid_argument("kh and kw must be 1 for a weight of 2 dimensions");
    }
    check_size("rows", shape.rows);
    check_size("cin", shape.cin);
    check_size("kh", shape.kh);
    check_size("kw", shape.kw);
    check_size("cin * kh", shape.cin * shape.kh);
    check_size("columns", shape.cols());
}

PatternBuilder::PatternBuilder(const WeightShape& shape, int64_t tile_size, std::unique_ptr<RowSource> source,
                               int threads, StoredTiles stored)
    : shape_(shape), stored_(stored), source_(std::move(source)) {
    check_weight_shape(shape);
    if (tile_size != 8 && tile_size != 16 && tile_size != 32 && tile_size != 64) {
        throw std::invalid_argument("tile_size must be 8, 16, 32 or 64, got " + std::to_string(tile_size));
    }
    check_threads(threads);
    sizes_.tile_size = tile_size;
    sizes_.rows = shape.rows;
    sizes_.cols = shape.cols();
    sizes_.tile_rows = ceil_div(sizes_.rows, tile_size);
    sizes_.tile_cols = ceil_div(sizes_.cols, tile_size);
    count(threads);
}

void PatternBuilder::count(int threads) {
    threads = useful_threads(threads, sizes_.rows * sizes_.cols / 8);
    const int64_t tile_size = sizes_.tile_size;
    const int64_t row_words = ceil_div(sizes_.cols, 64);
    std::vector<int64_t> tiles(static_cast<size_t>(sizes_.tile_rows));
    tile_row_start_.assign(static_cast<size_t>(sizes_.tile_rows) + 1, 0);
    // Allocated here: an exception must not leave a parallel region.
    std::vector<uint64_t> scratch(static_cast<size_t>(threads * 2 * row_words));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < sizes_.tile_rows; ++i) {
        uint64_t* row = scratch.data() + omp_get_thread_num() * 2 * row_words;
        uint64_t* any = row + row_words;
        std::fill(any, any + row_words, 0);
        int64_t values = 0;
        for (int64_t n = i * tile_size; n < std::min(sizes_.rows, (i + 1) * tile_size); ++n) {
            source_->read_row(n, row);
            for (int64_t w = 0; w < row_words; ++w) {
                any[w] |= row[w];
                values += popcount64(row[w]);
            }
        }
        int64_t found = 0;
        for (int64_t j = 0; j < sizes_.tile_cols; ++j) found += is_stored(tile_bits(any, j, tile_size));
        tiles[i] = found;
        tile_row_start_[i + 1] = values;
    }
    tile_row_ptr_.assign(static_cast<size_t>(sizes_.tile_rows) + 1, 0);
    for (int64_t i = 0; i < sizes_.tile_rows; ++i) {
        sizes_.tiles += tiles[i];
        if (sizes_.tiles > kMaxInt32)
            throw std::invalid_argument("a pattern can hold at most 2147483647 tiles");
        tile_row_ptr_[i + 1] = static_cast<int32_t>(sizes_.tiles);
        tile_row_start_[i + 1] += tile_row_start_[i];
    }
    sizes_.nnz = tile_row_start_.back();
}

void PatternBuilder::fill_header(int32_t* data) const {
    data[kWordMagic] = kPatternMagic;
    data[kWordTileSize] = static_cast<int32_t>(sizes_.tile_size);
    data[kWordRows] = static_cast<int32_t>(sizes_.rows);
    data[kWordCols] = static_cast<int32_t>(sizes_.cols);
    data[kWordTileRows] = static_cast<int32_t>(sizes_.tile_rows);
    data[kWordTileCols] = static_cast<int32_t>(sizes_.tile_cols);
    data[kWordTiles] = static_cast<int32_t>(sizes_.tiles);
    data[kWordVersion] = kPatternVersion;
    std::memcpy(data + kWordNnz, &sizes_.nnz, sizeof(sizes_.nnz));
    data[kWordDims] = static_cast<int32_t>(shape_.dims);
    data[kWordCin] = static_cast<int32_t>(shape_.cin);
    data[kWordKh] = static_cast<int32_t>(shape_.kh);
    data[kWordKw] = static_cast<int32_t>(shape_.kw);
}

// `scratch` holds tile_size rows of words and one more for their union.
void PatternBuilder::fill_tile_row(int64_t tile_row, uint64_t* scratch, int32_t* data) const {
    const PatternSections at = pattern_sections(sizes_);
    const int64_t tile_size = sizes_.tile_size;
    const int64_t row_words = ceil_div(sizes_.cols, 64);
    const int64_t inside = std::min(tile_size, sizes_.rows - tile_row * tile_size);
    uint64_t* any = scratch + tile_size * row_words;
    std::fill(any, any + row_words, 0);
    for (int64_t r = 0; r < inside; ++r) {
        uint64_t* row = scratch + r * row_words;
        source_->read_row(tile_row * tile_size + r, row);
        for (int64_t w = 0; w < row_words; ++w) any[w] |= row[w];
    }
    auto* tile_start = reinterpret_cast<int64_t*>(data + at.tile_start);
    auto* row_offset = reinterpret_cast<int16_t*>(data + at.row_offset);
    auto* bits = reinterpret_cast<unsigned char*>(data + at.bits);
    int64_t tile = tile_row_ptr_[tile_row];
    int64_t next_value = tile_row_start_[tile_row];
    for (int64_t j = 0; j < sizes_.tile_cols; ++j) {
        if (!is_stored(tile_bits(any, j, tile_size))) continue;
        data[at.tile_col + tile] = static_cast<int32_t>(j);
        tile_start[tile] = next_value;
        int64_t running = 0;
        for (int64_t r = 0; r < tile_size; ++r) {
            const uint64_t word = r < inside ? tile_bits(scratch + r * row_words, j, tile_size) : 0;
            row_offset[tile * tile_size + r] = static_cast<int16_t>(running);
            std::memcpy(bits + (tile * tile_size + r) * (tile_size / 8), &word,
                        static_cast<size_t>(tile_size / 8));
            running += popcount64(word);
        }
        next_value += running;
        ++tile;
    }
}

void PatternBuilder::fill(int32_t* data, int64_t words, int threads) const {
    if (words != this->words()) {
        throw std::invalid_argument("data must hold " + std::to_string(this->words()) + " words, got " +
                                    std::to_string(words));
    }
    if (data == nullptr) throw std::invalid_argument("data: null data");
    if (reinterpret_cast<uintptr_t>(data) % alignof(int64_t) != 0) {
        throw std::invalid_argument("data must be aligned to 8 bytes");
    }
    check_threads(threads);
    threads = useful_threads(threads, sizes_.rows * sizes_.cols / 8);
    const PatternSections at = pattern_sections(sizes_);
    // Only the sections before row_offset are small; the tail of the data ends on a whole tile, except for
    // padding.
    std::fill(data, data + at.row_offset, 0);
    std::fill(data + at.row_offset + sizes_.tiles * sizes_.tile_size / 2, data + at.bits, 0);
    std::fill(data + at.bits + sizes_.tiles * sizes_.tile_size * sizes_.tile_size / 32, data + words, 0);
    fill_header(data);
    std::copy(tile_row_ptr_.begin(), tile_row_ptr_.end(), data + at.tile_row_ptr);

    const int64_t scratch_words = (sizes_.tile_size + 1) * ceil_div(sizes_.cols, 64);
    std::vector<uint64_t> scratch(static_cast<size_t>(threads * scratch_words));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < sizes_.tile_rows; ++i) {
        fill_tile_row(i, scratch.data() + omp_get_thread_num() * scratch_words, data);
    }
    reinterpret_cast<int64_t*>(data + at.tile_start)[sizes_.tiles] = sizes_.nnz;

    int32_t* tile_ptr_t = data + at.tile_ptr_t;
    const int32_t* tile_col = data + at.tile_col;
    for (int64_t t = 0; t < sizes_.tiles; ++t) ++tile_ptr_t[tile_col[t] + 1];
    for (int64_t j = 0; j < sizes_.tile_cols; ++j) tile_ptr_t[j + 1] += tile_ptr_t[j];
    std::vector<int32_t> next(tile_ptr_t, tile_ptr_t + sizes_.tile_cols);
    for (int64_t t = 0; t < sizes_.tiles; ++t)
        data[at.tile_order_t + next[tile_col[t]]++] = static_cast<int32_t>(t);
}

}  // namespace sparsekern
