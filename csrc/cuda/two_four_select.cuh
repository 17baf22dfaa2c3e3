// Which weights of a tile of four by four are kept, by one thread in registers.
//
// The 90 masks need not be tried one by one. By how many of their first two rows' kept weights are in each
// column they fall into 19 groups, in which any upper half goes with any lower half: the best sum of a group
// is that of its best halves. Ties are decided by the same sums: every weight has a little added, less than
// the weights' own unit in all, so that no two masks are equal and an earlier one is larger. It also tells
// which mask the largest sum is. All of it is exact in integers, or in float64 used as integers; a tile whose
// weights differ by more powers of two than these hold is left to `select_tile`, which tries all masks as
// they are defined.
#pragma once

#include <cstdint>

#include "sparsekern/two_four.h"
#include "two_four_elements.cuh"

namespace sparsekern::cuda {

// int8, in the manner of the floating-point formats.
struct Int8Format {
    using Storage = uint8_t;
    static constexpr int kBits = 8;
};

// What is added for a weight in (row, column), in units of which a weight's own has 256: two of a row add 1
// to 6 times the row's place, the more the earlier the pair. The last row follows from the others.
__device__ constexpr uint32_t tie_break(int row, int column) {
    return (row == 0 ? 36u : row == 1 ? 6u : row == 2 ? 1u : 0u) * (4u >> column);
}
constexpr uint32_t kLeastTieBreak = 36 + 6 + 1;
constexpr int kTieBreaks = 216;

// The nibbles, in bytes, of a tile's four rows and of its four columns.
struct alignas(8) TileNibbles {
    uint32_t rows;
    uint32_t columns;
};

struct TileNibbleTable {
    TileNibbles of[kTieBreaks] = {};
};

constexpr uint32_t spread_nibbles(uint32_t nibbles) {
    return (nibbles & 0xFu) | (nibbles & 0xF0u) << 4 | (nibbles & 0xF00u) << 8 | (nibbles & 0xF000u) << 12;
}

// The mask by what it adds, less the least.
constexpr TileNibbleTable tile_nibble_table() {
    TileNibbleTable table;
    for (int mask = 0; mask < kTileMaskCount; ++mask) {
        const int pair0 = kTileMasks.top[mask] / kPairs, pair1 = kTileMasks.top[mask] % kPairs;
        const int pair2 = kTileMasks.bottom[mask] / kPairs;
        const auto nibbles = static_cast<uint32_t>(kTileMasks.choice[mask]);
        table.of[36 * (5 - pair0) + 6 * (5 - pair1) + (5 - pair2)] = {spread_nibbles(nibbles & 0xFFFFu),
                                                                      spread_nibbles(nibbles >> 16)};
    }
    return table;
}

__device__ const TileNibbleTable kTileNibbles = tile_nibble_table();

SPARSEKERN_HOST_DEVICE constexpr int pair_of(int i, int j) { return i == 0 ? j - 1 : i + j; }

template <class Key>
__device__ inline Key larger(Key a, Key b) {
    return a > b ? a : b;
}

// The largest sum of a mask's keys.
template <class Key>
__device__ inline Key largest_sum(const Key (&key)[4][4]) {
    Key pair[4][kPairs];
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        pair[row][0] = key[row][0] + key[row][1];
        pair[row][1] = key[row][0] + key[row][2];
        pair[row][2] = key[row][0] + key[row][3];
        pair[row][3] = key[row][1] + key[row][2];
        pair[row][4] = key[row][1] + key[row][3];
        pair[row][5] = key[row][2] + key[row][3];
    }
    // The first two rows have no column in common, and so the last two.
    Key top = pair[0][0] + pair[1][5], bottom = pair[2][0] + pair[3][5];
#pragma unroll
    for (int p = 1; p < kPairs; ++p) {
        top = larger(pair[0][p] + pair[1][5 - p], top);
        bottom = larger(pair[2][p] + pair[3][5 - p], bottom);
    }
    Key largest = top + bottom;
    // They have both columns in common.
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
        largest = larger(pair[0][p] + pair[1][p] + pair[2][5 - p] + pair[3][5 - p], largest);
    }
    // They have one in common, `twice`, and keep nothing of another, `never`.
#pragma unroll
    for (int p = 0; p < 12; ++p) {
        const int twice = p / 3, never = (twice + 1 + p % 3) % 4;
        const int b = twice != 0 && never != 0 ? 0 : twice != 1 && never != 1 ? 1 : 2;
        const int d = 6 - twice - never - b;
        const int tb = twice < b ? pair_of(twice, b) : pair_of(b, twice);
        const int td = twice < d ? pair_of(twice, d) : pair_of(d, twice);
        const int nb = never < b ? pair_of(never, b) : pair_of(b, never);
        const int nd = never < d ? pair_of(never, d) : pair_of(d, never);
        top = larger(pair[0][tb] + pair[1][td], pair[0][td] + pair[1][tb]);
        bottom = larger(pair[2][nb] + pair[3][nd], pair[2][nd] + pair[3][nb]);
        largest = larger(top + bottom, largest);
    }
    return largest;
}

// The largest of both halves of the words of a tile of 16-bit weights without their signs, and the least of
// all that are not zero, less 1.
struct Extent16 {
    uint32_t largest;
    uint32_t least_less_one;

    __device__ explicit Extent16(const uint32_t (&magnitude)[4][2]) {
        uint32_t most = magnitude[0][0], least = 0xFFFFFFFFu;
#pragma unroll
        for (int row = 0; row < 4; ++row) {
            most = __vimax3_u16x2(most, magnitude[row][0], magnitude[row][1]);
            // 0 - 1 is the largest there is.
            least = __viaddmin_u16x2(magnitude[row][0], 0xFFFFFFFFu, least);
            least = __viaddmin_u16x2(magnitude[row][1], 0xFFFFFFFFu, least);
        }
        largest = larger(most & 0xFFFFu, most >> 16);
        const uint32_t low = least & 0xFFFFu, high = least >> 16;
        least_less_one = low < high ? low : high;
    }
};

__device__ inline void magnitudes16(const Four<2> (&rows)[4], uint32_t (&magnitude)[4][2]) {
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        magnitude[row][0] = rows[row].word[0] & 0x7FFF7FFFu;
        magnitude[row][1] = rows[row].word[1] & 0x7FFF7FFFu;
    }
}

// Finds the place of a tile's mask in the table; false where it has to be looked for in another way.
template <class Format>
__device__ bool find_mask(const Four<Format::kBits / 8> (&rows)[4], uint32_t* place);

// Magnitudes below 2^21 in the upper 24 bits of a word, so that sums of eight fit: the largest weight's 8
// bits have 13 powers of two below them.
template <>
__device__ inline bool find_mask<BFloat16Format>(const Four<2> (&rows)[4], uint32_t* place) {
    uint32_t magnitude[4][2];
    magnitudes16(rows, magnitude);
    const Extent16 extent(magnitude);
    // A smaller scale than this one is no float32.
    const uint32_t exponent = larger(extent.largest >> 7, 20u);
    const bool exact =
        extent.largest < BFloat16Format::kInfinity && extent.least_less_one >= ((exponent - 13) << 7) - 1;
    const float scale = float_of((274 - exponent) << 23);
    uint32_t key[4][4];
#pragma unroll
    for (int row = 0; row < 4; ++row) {
#pragma unroll
        for (int column = 0; column < 4; ++column) {
            const uint32_t word = magnitude[row][column / 2];
            const float weight = float_of(column % 2 == 0 ? word << 16 : word & 0xFFFF0000u);
            // The integer is in the last bits of the sum with 2^23, whose first bits the shift drops.
            key[row][column] = (bits_of(fmaf(weight, scale, 8388608.0f)) << 8) + tie_break(row, column);
        }
    }
    *place = (largest_sum(key) - kLeastTieBreak) & 0xFFu;
    return exact;
}

template <>
__device__ inline bool find_mask<Int8Format>(const Four<1> (&rows)[4], uint32_t* place) {
    uint32_t key[4][4];
#pragma unroll
    for (int row = 0; row < 4; ++row) {
#pragma unroll
        for (int column = 0; column < 4; ++column) {
            const auto weight = static_cast<int32_t>(rows[row].word[0] << (24 - 8 * column)) >> 24;
            key[row][column] =
                (static_cast<uint32_t>(weight < 0 ? -weight : weight) << 8) + tie_break(row, column);
        }
    }
    *place = (largest_sum(key) - kLeastTieBreak) & 0xFFu;
    return true;
}

// A float16's bits at the upper end of a float64's are the number itself on another scale, of which the unit
// 2^-24 becomes 2^-1032. Sums of eight are below 2^-988.
template <>
__device__ inline bool find_mask<Float16Format>(const Four<2> (&rows)[4], uint32_t* place) {
    uint32_t magnitude[4][2];
    magnitudes16(rows, magnitude);
    const Extent16 extent(magnitude);
    double key[4][4];
#pragma unroll
    for (int row = 0; row < 4; ++row) {
#pragma unroll
        for (int column = 0; column < 4; ++column) {
            const uint32_t word = magnitude[row][column / 2];
            const uint32_t weight = column % 2 == 0 ? word << 10 & 0x01FFFC00u : word >> 6 & 0x01FFFC00u;
            // 2^-1040 is the 256th part of the unit.
            key[row][column] = double_of(static_cast<uint64_t>(weight) << 32) +
                               double_of(static_cast<uint64_t>(tie_break(row, column)) << 34);
        }
    }
    const double anchored = largest_sum(key) + double_of(uint64_t{1023 - 988} << 52);
    *place = (static_cast<uint32_t>(bits_of(anchored)) - kLeastTieBreak) & 0xFFu;
    return extent.largest < Float16Format::kInfinity;
}

// As above, on the scale of the tile's largest weight: its 24 bits have 17 powers of two below them.
template <>
__device__ inline bool find_mask<Float32Format>(const Four<4> (&rows)[4], uint32_t* place) {
    uint32_t largest = 0, least_less_one = 0xFFFFFFFFu;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const uint32_t magnitude = rows[i / 4].word[i % 4] & 0x7FFFFFFFu;
        largest = larger(largest, magnitude);
        least_less_one = magnitude - 1 < least_less_one ? magnitude - 1 : least_less_one;
    }
    const uint32_t exponent = larger(largest >> 23, 49u);
    const double unit = double_of(static_cast<uint64_t>(exponent - 48) << 52);
    double key[4][4];
#pragma unroll
    for (int row = 0; row < 4; ++row) {
#pragma unroll
        for (int column = 0; column < 4; ++column) {
            const uint64_t magnitude = rows[row].word[column] & 0x7FFFFFFFu;
            key[row][column] =
                fma(static_cast<double>(tie_break(row, column)), unit, double_of(magnitude << 29));
        }
    }
    const double anchored = largest_sum(key) + double_of(static_cast<uint64_t>(exponent + 4) << 52);
    *place = (static_cast<uint32_t>(bits_of(anchored)) - kLeastTieBreak) & 0xFFu;
    return largest < Float32Format::kInfinity && least_less_one >= ((exponent - 17) << 23) - 1;
}

template <class Format>
__device__ inline uint32_t magnitude_of(const Four<Format::kBits / 8>& row, int column) {
    const uint32_t word = row.word[column * Format::kBits / 32];
    const auto bits = static_cast<typename Format::Storage>(word >> column * Format::kBits % 32);
    if constexpr (Format::kBits == 8) {
        const int weight = static_cast<int8_t>(bits);
        return static_cast<uint32_t>(weight < 0 ? -weight : weight);
    } else {
        return magnitude_bits<Format>(bits);
    }
}

// The nibbles, in bytes, of the groups of four rows, each of which keeps its two largest.
template <class Format>
__device__ inline uint32_t nibbles_of_largest(const Four<Format::kBits / 8> (&rows)[4]) {
    uint32_t kept = 0;
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        uint32_t magnitude[4];
#pragma unroll
        for (int column = 0; column < 4; ++column)
            magnitude[column] = magnitude_of<Format>(rows[row], column);
        kept |= select_pair(magnitude[0], magnitude[1], magnitude[2], magnitude[3]) << 4 * row;
    }
    return nibbles_in_bytes(nibbles_of_bits(kept));
}

// |w| of the element `column` of a row, to be added up as `scaled_magnitude` says. Infinity outweighs all
// finite weights of a tile, and NaN all infinities.
template <class Format>
__device__ inline double weight_to_add(const Four<Format::kBits / 8>& row, int column) {
    const auto magnitude = static_cast<typename Format::Storage>(magnitude_of<Format>(row, column));
    if (is_finite<Format>(magnitude)) return scaled_magnitude<Format>(magnitude);
    const double infinity = scaled_magnitude<Format>(Format::kInfinity);
    return magnitude == Format::kInfinity ? 16 * infinity : 256 * infinity;
}

// The nibbles of the mask with the largest sum of magnitudes, in any case.
template <class Format>
__device__ inline TileNibbles try_all_masks(const Four<Format::kBits / 8> (&rows)[4]) {
    double magnitude[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) magnitude[i] = weight_to_add<Format>(rows[i / 4], i % 4);
    const auto nibbles = static_cast<uint32_t>(select_tile(magnitude));
    return {nibbles_in_bytes(nibbles & 0xFFFFu), nibbles_in_bytes(nibbles >> 16)};
}

// The same of a weight's tile; `table` is a copy of kTileNibbles.
template <class Format>
__device__ inline TileNibbles select_tile_nibbles(const Four<Format::kBits / 8> (&rows)[4],
                                                  const TileNibbles* table) {
    uint32_t place;
    const bool found = find_mask<Format>(rows, &place);
    if constexpr (Format::kBits > 8) {
        if (!found) return try_all_masks<Format>(rows);
    }
    return table[place];
}

}  // namespace sparsekern::cuda
