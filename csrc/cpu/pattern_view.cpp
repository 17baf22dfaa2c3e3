// Reading a packed pattern: the header, the sections it places, and every invariant of the format.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "pattern_walk.h"
#include "sparsekern/pattern.h"

namespace sparsekern {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("pattern: " + what); }

void require(bool holds, const char* what) {
    if (!holds) fail(what);
}

std::string at(const char* what, int64_t index) { return std::string(what) + " " + std::to_string(index); }

void check_header(const PatternView& p) {
    const int64_t t = p.tile_size;
    if (t != 8 && t != 16 && t != 32 && t != 64)
        fail("tile size must be 8, 16, 32 or 64, got " + std::to_string(t));
    require(p.rows >= 1 && p.cols >= 1, "rows and columns must be at least 1");
    require(p.tile_rows == (p.rows + t - 1) / t,
            "the number of tile rows does not fit the rows and the tile size");
    require(p.tile_cols == (p.cols + t - 1) / t,
            "the number of tile columns does not fit the columns and the tile size");
    require(p.tiles >= 0 && p.tiles <= p.tile_rows * p.tile_cols, "the number of tiles is out of range");
    require(p.nnz >= 0 && p.nnz <= p.rows * p.cols, "nnz is out of range");
    require(p.dims == 2 || p.dims == 4, "dims must be 2 or 4");
    require(p.cin >= 1 && p.kh >= 1 && p.kw >= 1, "cin, kh and kw must be at least 1");
    require(p.dims == 4 || (p.kh == 1 && p.kw == 1), "kh and kw must be 1 when dims is 2");
    // Divided rather than multiplied: three int32 words can overflow an int64 product.
    require(p.cols % p.cin == 0 && (p.cols / p.cin) % p.kh == 0 && p.cols / p.cin / p.kh == p.kw,
            "columns must equal kh * kw * cin");
}

void check_row_index(const PatternView& p) {
    require(p.tile_row_ptr[0] == 0, "tile_row_ptr must start at 0");
    for (int64_t i = 0; i < p.tile_rows; ++i) {
        if (p.tile_row_ptr[i + 1] < p.tile_row_ptr[i])
            fail(at("tile_row_ptr must not decrease, but does at", i + 1));
    }
    require(p.tile_row_ptr[p.tile_rows] == p.tiles, "tile_row_ptr must end at the number of tiles");
    for (int64_t i = 0; i < p.tile_rows; ++i) {
        for (int64_t t = p.tile_row_ptr[i]; t < p.tile_row_ptr[i + 1]; ++t) {
            if (p.tile_col[t] < 0 || p.tile_col[t] >= p.tile_cols)
                fail(at("tile_col is out of range at tile", t));
            if (t > p.tile_row_ptr[i] && p.tile_col[t] <= p.tile_col[t - 1]) {
                fail(at("tile_col must ascend within a tile row, but does not at tile", t));
            }
        }
    }
}

void check_column_index(const PatternView& p) {
    require(p.tile_ptr_t[0] == 0, "tile_ptr_t must start at 0");
    for (int64_t j = 0; j < p.tile_cols; ++j) {
        if (p.tile_ptr_t[j + 1] < p.tile_ptr_t[j])
            fail(at("tile_ptr_t must not decrease, but does at", j + 1));
    }
    require(p.tile_ptr_t[p.tile_cols] == p.tiles, "tile_ptr_t must end at the number of tiles");
    for (int64_t j = 0; j < p.tile_cols; ++j) {
        for (int64_t i = p.tile_ptr_t[j]; i < p.tile_ptr_t[j + 1]; ++i) {
            const int64_t t = p.tile_order_t[i];
            if (t < 0 || t >= p.tiles) fail(at("tile_order_t is out of range at", i));
            if (p.tile_col[t] != j) fail(at("tile_order_t names a tile of another tile column at", i));
            if (i > p.tile_ptr_t[j] && t <= p.tile_order_t[i - 1]) {
                fail(at("tile_order_t must ascend within a tile column, but does not at", i));
            }
        }
    }
}

enum class TileFault { kNone, kStart, kOffset, kOutside, kEmpty };

TileFault tile_fault(const PatternView& p, int64_t tile, int64_t tile_row) {
    const int64_t inside_rows = std::min(p.tile_size, p.rows - tile_row * p.tile_size);
    const uint64_t inside_cols = low_bits(std::min(p.tile_size, p.cols - p.tile_col[tile] * p.tile_size));
    int64_t running = 0;
    for (int64_t r = 0; r < p.tile_size; ++r) {
        const uint64_t word = p.row_bits(tile, r);
        if (r < inside_rows ? (word & ~inside_cols) != 0 : word != 0) return TileFault::kOutside;
        if (p.row_offset[tile * p.tile_size + r] != running) return TileFault::kOffset;
        running += popcount64(word);
    }
    if (running == 0 && !p.complete()) return TileFault::kEmpty;
    // Unsigned, since the difference of what was damaged may not fit.
    const auto start = static_cast<uint64_t>(p.tile_start[tile]);
    const auto end = static_cast<uint64_t>(p.tile_start[tile + 1]);
    return end - start == static_cast<uint64_t>(running) ? TileFault::kNone : TileFault::kStart;
}

void check_tiles(const PatternView& p, int threads) {
    require(p.tile_start[0] == 0, "tile_start must start at 0");
    int64_t first = p.tiles;
    threads = useful_threads(threads, p.tiles * p.tile_size);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) reduction(min : first)
    for (int64_t i = 0; i < p.tile_rows; ++i) {
        for (int64_t t = p.tile_row_ptr[i]; t < p.tile_row_ptr[i + 1]; ++t) {
            if (tile_fault(p, t, i) != TileFault::kNone) {
                first = std::min(first, t);
                break;
            }
        }
    }
    if (first < p.tiles) {
        const int32_t* row = std::upper_bound(p.tile_row_ptr, p.tile_row_ptr + p.tile_rows + 1, first) - 1;
        switch (tile_fault(p, first, row - p.tile_row_ptr)) {
            case TileFault::kOutside:
                fail(at("bits outside the matrix are set in tile", first));
            case TileFault::kOffset:
                fail(at("row_offset does not match the bits of tile", first));
            case TileFault::kEmpty:
                fail(at("an empty tile is stored, but not all tiles are: tile", first));
            default:
                fail(at("tile_start does not match the bits of tile", first));
        }
    }
    require(p.tile_start[p.tiles] == p.nnz, "nnz must equal the number of bits set");
}

void check_padding(const int32_t* data, int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
        if (data[w] != 0) fail(at("the unused words between sections must be zero, but are not at word", w));
    }
}

void check_all_padding(const PatternView& p) {
    const PatternSections at = pattern_sections(p);
    const int32_t* data = reinterpret_cast<const int32_t*>(p.tile_start) - at.tile_start;
    check_padding(data, at.tile_start + 2 * (p.tiles + 1), at.tile_row_ptr);
    check_padding(data, at.tile_row_ptr + p.tile_rows + 1, at.tile_col);
    check_padding(data, at.tile_col + p.tiles, at.tile_ptr_t);
    check_padding(data, at.tile_ptr_t + p.tile_cols + 1, at.tile_order_t);
    check_padding(data, at.tile_order_t + p.tiles, at.row_offset);
    check_padding(data, at.row_offset + p.tiles * p.tile_size / 2, at.bits);
    check_padding(data, at.bits + p.tiles * p.tile_size * p.tile_size / 32, at.total_words);
}

}  // namespace

PatternView PatternView::parse(const int32_t* data, int64_t words) {
    require(data != nullptr && words >= kPatternHeaderWords,
            "the data must hold at least the 16 words of a header");
    require(reinterpret_cast<uintptr_t>(data) % alignof(int64_t) == 0, "the data must be aligned to 8 bytes");
    require(data[kWordMagic] == kPatternMagic, "the first word is not the magic number of a pattern");
    if (data[kWordVersion] != kPatternVersion) {
        fail("version must be 1, got " + std::to_string(data[kWordVersion]));
    }
    PatternView p;
    p.tile_size = data[kWordTileSize];
    p.rows = data[kWordRows];
    p.cols = data[kWordCols];
    p.tile_rows = data[kWordTileRows];
    p.tile_cols = data[kWordTileCols];
    p.tiles = data[kWordTiles];
    std::memcpy(&p.nnz, data + kWordNnz, sizeof(p.nnz));
    p.dims = data[kWordDims];
    p.cin = data[kWordCin];
    p.kh = data[kWordKh];
    p.kw = data[kWordKw];
    check_header(p);
    require(data[kWordReserved] == 0 && data[kWordReserved + 1] == 0,
            "the reserved header words must be zero");
    const PatternSections at = pattern_sections(p);
    if (words != at.total_words) {
        fail("the header needs " + std::to_string(at.total_words) + " words, but the data holds " +
             std::to_string(words));
    }
    p.tile_start = reinterpret_cast<const int64_t*>(data + at.tile_start);
    p.tile_row_ptr = data + at.tile_row_ptr;
    p.tile_col = data + at.tile_col;
    p.tile_ptr_t = data + at.tile_ptr_t;
    p.tile_order_t = data + at.tile_order_t;
    p.row_offset = reinterpret_cast<const int16_t*>(data + at.row_offset);
    p.bits = reinterpret_cast<const unsigned char*>(data + at.bits);
    return p;
}

void validate(const PatternView& pattern, int threads) {
    check_threads(threads);
    check_row_index(pattern);
    check_column_index(pattern);
    check_tiles(pattern, threads);
    check_all_padding(pattern);
}

}  // namespace sparsekern
