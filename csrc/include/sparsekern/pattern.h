// The bitmap-tile pattern as native code sees it: sizes and pointers into one packed int32 buffer.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SPARSEKERN_HOST_DEVICE __host__ __device__
#else
#define SPARSEKERN_HOST_DEVICE
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the packed pattern is little endian and is read in place"
#endif

namespace sparsekern {

constexpr int32_t kPatternMagic = 0x314B5053;  // "SPK1"
constexpr int32_t kPatternVersion = 1;
constexpr int64_t kPatternHeaderWords = 16;

// Where the header keeps what; nnz takes two words, words 14 and 15 are reserved and zero.
enum PatternHeaderWord {
    kWordMagic = 0,
    kWordTileSize = 1,
    kWordRows = 2,
    kWordCols = 3,
    kWordTileRows = 4,
    kWordTileCols = 5,
    kWordTiles = 6,
    kWordVersion = 7,
    kWordNnz = 8,
    kWordDims = 10,
    kWordCin = 11,
    kWordKh = 12,
    kWordKw = 13,
    kWordReserved = 14,
};

// The sizes a pattern's header states; they alone fix where every section begins.
struct PatternSizes {
    int64_t tile_size = 0;
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t tile_rows = 0;
    int64_t tile_cols = 0;
    int64_t tiles = 0;
    int64_t nnz = 0;

    // Whether the whole grid of tiles is stored. Only then may a stored tile be empty.
    SPARSEKERN_HOST_DEVICE constexpr bool complete() const { return tiles == tile_rows * tile_cols; }
};

// Word offsets of the sections behind the header; each is a multiple of four words (16 bytes).
struct PatternSections {
    int64_t tile_start = 0;
    int64_t tile_row_ptr = 0;
    int64_t tile_col = 0;
    int64_t tile_ptr_t = 0;
    int64_t tile_order_t = 0;
    int64_t row_offset = 0;
    int64_t bits = 0;
    int64_t total_words = 0;
};

SPARSEKERN_HOST_DEVICE constexpr int64_t align_words(int64_t words) { return (words + 3) / 4 * 4; }

SPARSEKERN_HOST_DEVICE constexpr PatternSections pattern_sections(const PatternSizes& s) {
    PatternSections at;
    at.tile_start = kPatternHeaderWords;
    at.tile_row_ptr = at.tile_start + align_words(2 * (s.tiles + 1));
    at.tile_col = at.tile_row_ptr + align_words(s.tile_rows + 1);
    at.tile_ptr_t = at.tile_col + align_words(s.tiles);
    at.tile_order_t = at.tile_ptr_t + align_words(s.tile_cols + 1);
    at.row_offset = at.tile_order_t + align_words(s.tiles);
    at.bits = at.row_offset + align_words(s.tiles * s.tile_size / 2);
    at.total_words = at.bits + align_words(s.tiles * s.tile_size * s.tile_size / 32);
    return at;
}

// A pattern on the host. `dims`, `cin`, `kh`, `kw` give the weight's own shape: (rows, cols) when dims is 2,
// (rows, cin, kh, kw) with columns in (kh, kw, cin) order when it is 4.
struct PatternView : PatternSizes {
    int64_t dims = 2;
    int64_t cin = 0;
    int64_t kh = 1;
    int64_t kw = 1;
    const int64_t* tile_start = nullptr;
    const int32_t* tile_row_ptr = nullptr;
    const int32_t* tile_col = nullptr;
    const int32_t* tile_ptr_t = nullptr;
    const int32_t* tile_order_t = nullptr;
    const int16_t* row_offset = nullptr;
    const unsigned char* bits = nullptr;

    // Reads the header and places the sections. Throws std::invalid_argument when the header is not a
    // pattern's or when `words` is not exactly what the header's sizes need.
    static PatternView parse(const int32_t* data, int64_t words);

    // The bits of one row of a tile, bit c for column c.
    uint64_t row_bits(int64_t tile, int64_t row) const {
        const int64_t bytes = tile_size / 8;
        uint64_t word = 0;
        std::memcpy(&word, bits + (tile * tile_size + row) * bytes, static_cast<size_t>(bytes));
        return word;
    }

    // Index of the first value of one row of a tile.
    int64_t row_start(int64_t tile, int64_t row) const {
        return tile_start[tile] + row_offset[tile * tile_size + row];
    }
};

// Checks every invariant of the format; throws std::invalid_argument naming the first broken one. All other
// functions rely on it: they check the sizes they are handed, not the contents of the sections.
void validate(const PatternView& pattern, int threads = 1);

// Number of set bits. `static` on purpose: a file compiled for a newer instruction set must keep its own
// copy.
static inline int64_t popcount64(uint64_t word) {
#if defined(__POPCNT__)
    return __builtin_popcountll(word);
#else
    word -= (word >> 1) & 0x5555555555555555ull;
    word = (word & 0x3333333333333333ull) + ((word >> 2) & 0x3333333333333333ull);
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0Full;
    return static_cast<int64_t>((word * 0x0101010101010101ull) >> 56);
#endif
}

// A word whose lowest `count` bits (0 to 64) are set.
static inline uint64_t low_bits(int64_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

}  // namespace sparsekern
