// The bits of tiles as lists of positions.

#pragma once

#include "kernel_table.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Appending may write this much beyond what it adds.
constexpr int64_t kListSlack = 64;

#if defined(__AVX512VBMI2__)
// The bytes that `mask` names, side by side; zeros follow. Zen 4 has this instruction wait for the register
// it overwrites: a fresh zero, which the compiler must not see through, costs a quarter of that.
inline __m512i compress_bytes(__mmask64 mask, __m512i bytes) {
    __m512i to = _mm512_setzero_si512();
    asm("" : "+v"(to));
    return _mm512_mask_compress_epi8(to, mask, bytes);
}

// The positions of `bits` as bytes; zeros follow.
inline __m512i positions_of(uint64_t bits) {
    alignas(64) static constexpr uint8_t kIdentity[64] = {
        0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
        22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
        44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    return compress_bytes(bits, _mm512_load_si512(kIdentity));
}
#endif

// Writes the positions of `bits` times Scale, plus `first`; returns how many there are. The loop runs by
// eights, so that it ends where it is expected to.
template <int Scale>
inline int64_t append_positions(uint64_t bits, uint16_t first, uint16_t* to) {
    const int64_t count = __builtin_popcountll(bits);
#if defined(__AVX512VBMI2__)
    const __m512i packed = positions_of(bits);
    const __m256i base = _mm256_set1_epi16(static_cast<int16_t>(first));
    const auto put = [&](int64_t at, __m128i bytes) {
        const __m256i position = _mm256_cvtepu8_epi16(bytes);
        const __m256i scaled = _mm256_mullo_epi16(position, _mm256_set1_epi16(Scale));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), _mm256_add_epi16(scaled, base));
    };
    put(0, _mm512_castsi512_si128(packed));
    if (count > 16) {
        put(16, _mm512_extracti32x4_epi32(packed, 1));
        if (count > 32) {
            put(32, _mm512_extracti32x4_epi32(packed, 2));
            put(48, _mm512_extracti32x4_epi32(packed, 3));
        }
    }
#else
    constexpr uint64_t kTop = uint64_t{1} << 63;  // keeps the count of zeros defined past the last bit
    for (int64_t k = 0; k < count; k += 8) {
#pragma GCC unroll 8
        for (int q = 0; q < 8; ++q) {
            to[k + q] = static_cast<uint16_t>(first + __builtin_ctzll(bits | kTop) * Scale);
            bits &= bits - 1;
        }
    }
#endif
    return count;
}

// Writes `value` `count` times.
inline void append_same(uint16_t value, int64_t count, uint16_t* to) {
    int64_t k = 0;
    do {
        for (int q = 0; q < 16; ++q) to[k + q] = value;
        k += 16;
    } while (k < count);
}

template <class A>
inline const A* all_values_end(const TileMatrix& m, const A* values) {
    return values + m.tile_start[m.tile_row_ptr[m.tile_rows]];
}

// Copies `count` values, by whole blocks where what lies behind them may be read; each times `scale`.
template <class A>
inline void copy_scaled(A* to, const A* from, int64_t count, const A* end, A scale) {
    typedef A Half __attribute__((vector_size(kBytes < 32 ? kBytes : 32)));
    constexpr int64_t lanes = sizeof(Half) / sizeof(A);
    constexpr int64_t block = 64 / static_cast<int64_t>(sizeof(A));
    int64_t k = 0;
    do {
        if (end - (from + k) < block) {
            for (; k < count; ++k) to[k] = from[k] * scale;
            return;
        }
#pragma GCC unroll 4
        for (int64_t i = 0; i < block; i += lanes) {
            Half part;
            std::memcpy(&part, from + k + i, sizeof(part));
            part *= scale;
            std::memcpy(to + k + i, &part, sizeof(part));
        }
        k += block;
    } while (k < count);
}
template <class A>
inline void copy_values(A* to, const A* from, int64_t count, const A* end) {
    copy_scaled<A>(to, from, count, end, A(1));
}

// The rows of some neighbouring tiles, as words.
class RowWords {
public:
    RowWords(const TileMatrix& m, int64_t first_tile)
        : row_bytes_(m.tile_size / 8),
          tile_bytes_(m.tile_size * row_bytes_),
          shift_(static_cast<int>(64 - m.tile_size)),
          last_(m.bits + first_tile * tile_bytes_ + row_bytes_ - 8) {}

    // Reads eight bytes whatever the tile's size: those in front of the row, which are there (see
    // TileMatrix), are shifted out.
    uint64_t operator()(int64_t tile, int64_t row) const {
        uint64_t word;
        std::memcpy(&word, last_ + tile * tile_bytes_ + row * row_bytes_, 8);
        return word >> shift_;
    }
    void prefetch(int64_t tile, int64_t row) const {
        __builtin_prefetch(last_ + tile * tile_bytes_ + row * row_bytes_, 0, 2);
    }

private:
    int64_t row_bytes_;
    int64_t tile_bytes_;
    int shift_;
    const unsigned char* last_;
};

// The nonzeros of one row in some tiles.
template <class A>
struct NonzeroList {
    uint16_t offset[kNarrowColumns + kListSlack];
    A value[kNarrowColumns + kListSlack];
};

// The nonzeros of one tile: where their columns' and rows' runs begin in panels.
struct TileList {
    uint16_t column[64 * 64 + kListSlack];
    uint16_t row[64 * 64 + kListSlack];

    // Row r's columns are those of copy r % Copies of the panel.
    template <int W, int Copies>
    int64_t fill(const TileMatrix& m, int64_t tile, int64_t rows) {
        const RowWords words(m, tile);
        int64_t count = 0;
        for (int64_t r = 0; r < rows; ++r) {
            const auto copy = static_cast<uint16_t>(r % Copies * m.tile_size * W);
            const int64_t added = append_positions<W>(words(0, r), copy, column + count);
            append_same(static_cast<uint16_t>(r * W), added, row + count);
            count += added;
        }
        return count;
    }
    // Makes what lies behind `count` entries a position too.
    void pad(int64_t count) {
        std::memset(column + count, 0, sizeof(uint16_t) * 32);
        std::memset(row + count, 0, sizeof(uint16_t) * 32);
    }
};

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
