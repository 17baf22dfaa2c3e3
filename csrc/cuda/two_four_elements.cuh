// Elements of a weight in registers, four neighbouring ones at a time: keeping two of them, and turning four
// rows of four into their columns. Elements are bits here; kBytes is the size of one.
#pragma once

#include <cstdint>

#include "sparsekern/two_four.h"

namespace sparsekern::cuda {

// Words that are loaded and stored at once, as far as hardware can.
template <int kWords>
struct alignas(kWords < 4 ? 4 * kWords : 16) Words {
    uint32_t word[kWords];
};

// Four elements. Two elements are the first half of the words, or of the one word.
template <int kBytes>
using Four = Words<kBytes>;

__device__ inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}
__device__ inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}
__device__ inline uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}
__device__ inline double double_of(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

// The nibbles of four groups, each in the low half of a byte of its own.
__device__ inline uint32_t nibbles_in_bytes(uint32_t nibbles) {
    nibbles = (nibbles | nibbles << 8) & 0x00FF00FFu;
    return (nibbles | nibbles << 4) & 0x0F0F0F0Fu;
}

// How to keep two of each of four fours, by their nibbles in bytes.
template <int kBytes>
class Keeper;

template <>
class Keeper<1> {
public:
    __device__ explicit Keeper(uint32_t nibbles)
        : selectors_((nibbles & 0x03030303u) | (nibbles << 2 & 0x30303030u)) {}

    __device__ Four<1> keep(const Four<1>& four, int i) const {
        return {{__byte_perm(four.word[0], 0, selectors_ >> 8 * i & 0x33u) & 0xFFFFu}};
    }

private:
    uint32_t selectors_;
};

template <>
class Keeper<2> {
public:
    __device__ explicit Keeper(uint32_t nibbles) {
        const uint32_t first = nibbles & 0x03030303u, second = nibbles >> 2 & 0x03030303u;
        // Element i is bytes 2i and 2i + 1, so a selector of two elements has the digits 2i, 2i + 1, 2j, 2j
        // + 1.
        selectors_[0] = __byte_perm(first, second, 0x5140) * 0x22u + 0x10101010u;
        selectors_[1] = __byte_perm(first, second, 0x7362) * 0x22u + 0x10101010u;
    }

    __device__ Four<2> keep(const Four<2>& four, int i) const {
        return {{__byte_perm(four.word[0], four.word[1], selectors_[i / 2] >> 16 * (i % 2)), 0}};
    }

private:
    uint32_t selectors_[2];
};

template <>
class Keeper<4> {
public:
    __device__ explicit Keeper(uint32_t nibbles) : nibbles_(nibbles) {}

    __device__ Four<4> keep(const Four<4>& four, int i) const {
        const uint32_t first = nibbles_ >> 8 * i & 3u, second = nibbles_ >> (8 * i + 2) & 3u;
        const uint32_t* const w = four.word;
        return {{first == 0   ? w[0]
                 : first == 1 ? w[1]
                              : w[2],
                 second == 1   ? w[1]
                 : second == 2 ? w[2]
                               : w[3],
                 0, 0}};
    }

private:
    uint32_t nibbles_;
};

// Two elements and two more.
__device__ inline Four<1> join(const Four<1>& a, const Four<1>& b) { return {{a.word[0] | b.word[0] << 16}}; }
__device__ inline Four<2> join(const Four<2>& a, const Four<2>& b) { return {{a.word[0], b.word[0]}}; }
__device__ inline Four<4> join(const Four<4>& a, const Four<4>& b) {
    return {{a.word[0], a.word[1], b.word[0], b.word[1]}};
}

// Row i of the result is column i of `rows`.
__device__ inline void transpose(const Four<1> (&rows)[4], Four<1> (&columns)[4]) {
    const uint32_t upper01 = __byte_perm(rows[0].word[0], rows[1].word[0], 0x5140);
    const uint32_t upper23 = __byte_perm(rows[0].word[0], rows[1].word[0], 0x7362);
    const uint32_t lower01 = __byte_perm(rows[2].word[0], rows[3].word[0], 0x5140);
    const uint32_t lower23 = __byte_perm(rows[2].word[0], rows[3].word[0], 0x7362);
    columns[0].word[0] = __byte_perm(upper01, lower01, 0x5410);
    columns[1].word[0] = __byte_perm(upper01, lower01, 0x7632);
    columns[2].word[0] = __byte_perm(upper23, lower23, 0x5410);
    columns[3].word[0] = __byte_perm(upper23, lower23, 0x7632);
}
__device__ inline void transpose(const Four<2> (&rows)[4], Four<2> (&columns)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            columns[i].word[half] = __byte_perm(rows[2 * half].word[i / 2], rows[2 * half + 1].word[i / 2],
                                                i % 2 == 0 ? 0x5410 : 0x7632);
        }
    }
}
__device__ inline void transpose(const Four<4> (&rows)[4], Four<4> (&columns)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) columns[i].word[j] = rows[j].word[i];
    }
}

// The bits of element i that tell whether it is zero: -0.0 is.
template <int kBytes>
__device__ inline uint32_t magnitude_of_element(const Four<kBytes>& four, int i) {
    constexpr uint32_t kMagnitude = kBytes == 1 ? 0xFFu : kBytes == 2 ? 0x7FFFu : 0x7FFFFFFFu;
    return four.word[i * kBytes / 4] >> 8 * (i * kBytes % 4) & kMagnitude;
}

// Four groups as CUTLASS is given them by PyTorch, which knows kept weights by not being zero. Where a kept
// one is, the group's nibble becomes that which PyTorch gives it, and what is not kept becomes 0.
template <int kBytes>
__device__ inline void encode_nonzeros(Four<kBytes> (&groups)[4], uint32_t* nibbles) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t nibble = *nibbles >> 8 * i & 15u;
        const uint32_t kept = 1u << (nibble & 3u) | 1u << (nibble >> 2);
        uint32_t nonzero = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) nonzero |= magnitude_of_element(groups[i], j) != 0 ? kept & 1u << j : 0;
        if (nonzero == kept) continue;
        constexpr uint32_t kElement = 0xFFFFFFFFu >> (32 - 8 * kBytes);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if ((kept >> j & 1u) == 0) groups[i].word[j * kBytes / 4] &= ~(kElement << 8 * (j * kBytes % 4));
        }
        // Without weights, or with the third or fourth alone: 2 and 3; the first: 0 and 2; the second: 1
        // and 2.
        const uint32_t encoded = nonzero == 1 ? 8u : nonzero == 2 ? 9u : 14u;
        *nibbles = (*nibbles & ~(15u << 8 * i)) | encoded << 8 * i;
    }
}

}  // namespace sparsekern::cuda
