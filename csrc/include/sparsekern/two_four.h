// 2:4 structured sparsity: which two of four neighbouring weights are kept, and how that is written down. CPU
// and GPU code share every decision made here.
//
// A group is four neighbouring columns of a row, of which two are kept. Its metadata is the nibble
// i0 | i1 << 2, where i0 < i1 are the columns of the two within the group. A row's nibbles lie one after
// another, the low one of a byte first, so that they are a stream of 2-bit columns, one for each kept value;
// the last high nibble of an odd number of groups is 0.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "sparsekern/pattern.h"
#include "sparsekern/selection.h"

namespace sparsekern {

// The types that weights may have; the first four are those of FloatType.
enum class WeightType : int32_t { float16 = 0, bfloat16 = 1, float32 = 2, float64 = 3, int8 = 4 };

constexpr int kGroupSize = 4;
constexpr int kPairs = 6;           // ways to keep two of four
constexpr int kTileMaskCount = 90;  // ways to keep two in each row and each column of four by four

// Bytes of a row of metadata; `columns` is a multiple of 4.
SPARSEKERN_HOST_DEVICE constexpr int64_t metadata_bytes(int64_t columns) { return (columns + 7) / 8; }

// Pairs in the order (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3): those that keep earlier positions come
// first. The nibble of each, and its bits, bit c for column c.
SPARSEKERN_HOST_DEVICE constexpr uint32_t pair_nibble(int pair) { return 0xED9C84u >> 4 * pair & 15u; }
SPARSEKERN_HOST_DEVICE constexpr uint32_t pair_bits(int pair) { return 0xCA6953u >> 4 * pair & 15u; }

// The nibbles of up to four groups at once: bits 4g .. 4g + 3 of `kept` say which of group g are kept, and
// bits 4g .. 4g + 3 of the result are its nibble.
SPARSEKERN_HOST_DEVICE constexpr uint32_t nibbles_of_bits(uint32_t kept) {
    const uint32_t ones = 0x1111u;
    const uint32_t k0 = kept & ones, k1 = kept >> 1 & ones, k2 = kept >> 2 & ones, k3 = kept >> 3 & ones;
    const uint32_t neither = ones & ~(k0 | k1);
    return (k1 & ~k0) | neither << 1 | (k3 | (ones & ~k2)) << 2 | (k2 | k3) << 3;
}

// Whether a nibble is one of the six.
SPARSEKERN_HOST_DEVICE constexpr bool is_pair_nibble(uint32_t nibble) { return (nibble & 3u) < nibble >> 2; }

// |w| as an unsigned integer in the same order, and whether it is finite. -0.0 is 0.0.
template <class Format>
SPARSEKERN_HOST_DEVICE constexpr typename Format::Key magnitude_bits(typename Format::Storage bits) {
    return bits & (Format::kSign - 1);
}
template <class Format>
SPARSEKERN_HOST_DEVICE constexpr bool is_finite(typename Format::Storage bits) {
    return magnitude_bits<Format>(bits) < Format::kInfinity;
}

// Which two of a group are kept: the largest, and of equal ones those of the lowest columns. As bits, bit c
// for column c. The keys are anything in the order of the magnitudes.
template <class Key>
SPARSEKERN_HOST_DEVICE inline uint32_t select_pair(Key k0, Key k1, Key k2, Key k3) {
    const int a01 = k0 >= k1, a02 = k0 >= k2, a03 = k0 >= k3;
    const int a12 = k1 >= k2, a13 = k1 >= k3, a23 = k2 >= k3;
    // Each of the six comparisons has one winner, so the two largest win 3 and 2 of them.
    const uint32_t first = a01 + a02 + a03 >= 2, second = (1 - a01) + a12 + a13 >= 2;
    const uint32_t third = (1 - a02) + (1 - a12) + a23 >= 2;
    const uint32_t fourth = (1 - a03) + (1 - a13) + (1 - a23) >= 2;
    return first | second << 1 | third << 2 | fourth << 3;
}

// |w| of a tile as float64, scaled by a power of two that is the same for all weights of a type. Sums of
// these are rounded as sums of the magnitudes would be: the least bit of every float32, float16 and bfloat16
// keeps its place among float64's, also below 2^-1022. So nothing is lost, provided that float64's own
// subnormal numbers are not flushed to zero.
template <class Format>
SPARSEKERN_HOST_DEVICE inline double scaled_magnitude(typename Format::Storage bits) {
    constexpr int mantissa = Format::kBits == 64                                  ? 52
                             : Format::kBits == 32                                ? 23
                             : Format::kInfinity == typename Format::Key{0x7C00u} ? 10
                                                                                  : 7;
    const uint64_t moved = static_cast<uint64_t>(magnitude_bits<Format>(bits)) << (52 - mantissa);
    double magnitude;
    memcpy(&magnitude, &moved, sizeof(magnitude));
    return magnitude;
}

// A choice of one of the 90 masks of a tile of four by four, all that is ever asked of it in one word:
// - bits 0 .. 15: the nibble of each row's group,
// - bits 16 .. 31: the nibble of each column's group, which are those of the transpose,
// - bits 32 .. 47: the mask, bit 4 * row + column,
// - bits 48 .. 63: the mask of the transpose, bit 4 * column + row.
using TileChoice = uint64_t;

SPARSEKERN_HOST_DEVICE constexpr uint32_t row_nibble(TileChoice choice, int row) {
    return static_cast<uint32_t>(choice >> 4 * row) & 15u;
}
SPARSEKERN_HOST_DEVICE constexpr uint32_t column_nibble(TileChoice choice, int column) {
    return static_cast<uint32_t>(choice >> (16 + 4 * column)) & 15u;
}
SPARSEKERN_HOST_DEVICE constexpr uint32_t tile_mask(TileChoice choice) {
    return static_cast<uint32_t>(choice >> 32) & 0xFFFFu;
}
SPARSEKERN_HOST_DEVICE constexpr bool keeps(TileChoice choice, int row, int column) {
    return (choice >> (32 + 4 * row + column) & 1u) != 0;
}

// Mask m is made of the pairs of its four rows, in the order of masks: 6 * (pair of row 0) + (pair of row 1)
// is its top half, and the same of rows 2 and 3 its bottom half.
struct TileMasks {
    int top[kTileMaskCount] = {};
    int bottom[kTileMaskCount] = {};
    TileChoice choice[kTileMaskCount] = {};
};

SPARSEKERN_HOST_DEVICE constexpr uint32_t transposed_mask(uint32_t mask) {
    uint32_t result = 0;
    for (int i = 0; i < 16; ++i) result |= (mask >> i & 1u) << (i % 4 * 4 + i / 4);
    return result;
}

// The 90 masks. One that keeps an earlier position, row by row, comes before one that does not: the strings
// of their 16 positions descend.
SPARSEKERN_HOST_DEVICE constexpr TileMasks tile_masks() {
    TileMasks masks;
    int count = 0;
    for (int pairs = 0; pairs < kPairs * kPairs * kPairs * kPairs; ++pairs) {
        const int top = pairs / (kPairs * kPairs), bottom = pairs % (kPairs * kPairs);
        const uint32_t mask = pair_bits(top / kPairs) | pair_bits(top % kPairs) << 4 |
                              pair_bits(bottom / kPairs) << 8 | pair_bits(bottom % kPairs) << 12;
        const uint32_t transposed = transposed_mask(mask);
        bool two_each = true;
        for (int column = 0; column < 4; ++column) {
            const uint32_t kept = transposed >> 4 * column & 15u;
            two_each = two_each && (kept & 1u) + (kept >> 1 & 1u) + (kept >> 2 & 1u) + (kept >> 3) == 2;
        }
        if (!two_each) continue;
        masks.top[count] = top;
        masks.bottom[count] = bottom;
        masks.choice[count] = TileChoice{nibbles_of_bits(mask)} |
                              TileChoice{nibbles_of_bits(transposed)} << 16 | TileChoice{mask} << 32 |
                              TileChoice{transposed} << 48;
        ++count;
    }
    return masks;
}

constexpr TileMasks kTileMasks = tile_masks();

// One of them, as constants that device code may use as well.
template <int kMask>
struct TileMaskConstants {
    static_assert(kMask >= 0 && kMask < kTileMaskCount);
    static constexpr int kTop = kTileMasks.top[kMask];
    static constexpr int kBottom = kTileMasks.bottom[kMask];
    static constexpr TileChoice kChoice = kTileMasks.choice[kMask];
};

SPARSEKERN_HOST_DEVICE inline void consider_mask(double total, TileChoice mask, double* best,
                                                 TileChoice* choice) {
    if (total > *best) {
        *best = total;
        *choice = mask;
    }
}

template <int... kMasks>
SPARSEKERN_HOST_DEVICE inline TileChoice select_mask(const double (&top)[36], const double (&bottom)[36],
                                                     std::integer_sequence<int, kMasks...>) {
    using First = TileMaskConstants<0>;
    double best = top[First::kTop] + bottom[First::kBottom];
    TileChoice choice = First::kChoice;
    (consider_mask(top[TileMaskConstants<kMasks>::kTop] + bottom[TileMaskConstants<kMasks>::kBottom],
                   TileMaskConstants<kMasks>::kChoice, &best, &choice),
     ...);
    return choice;
}

// The mask of a tile with the largest sum of magnitudes, which are given row by row. A row's sum is that of
// its two kept, in column order, and the total (s0 + s1) + (s2 + s3); of equal totals the first mask's is
// taken.
SPARSEKERN_HOST_DEVICE inline TileChoice select_tile(const double (&magnitude)[16]) {
    double pair[4][kPairs];
    for (int row = 0; row < 4; ++row) {
        const double* const w = magnitude + 4 * row;
        pair[row][0] = w[0] + w[1];
        pair[row][1] = w[0] + w[2];
        pair[row][2] = w[0] + w[3];
        pair[row][3] = w[1] + w[2];
        pair[row][4] = w[1] + w[3];
        pair[row][5] = w[2] + w[3];
    }
    double top[36], bottom[36];
    for (int i = 0; i < 36; ++i) {
        top[i] = pair[0][i / kPairs] + pair[1][i % kPairs];
        bottom[i] = pair[2][i / kPairs] + pair[3][i % kPairs];
    }
    return select_mask(top, bottom, std::make_integer_sequence<int, kTileMaskCount>());
}

}  // namespace sparsekern
