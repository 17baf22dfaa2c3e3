// How kernels on 2:4 weights cut them: a block of threads has a block of the weight, a thread 8 x 8 of it.
#pragma once

#include <cstdint>

#include "two_four_elements.cuh"
#include "two_four_metadata.cuh"

namespace sparsekern::cuda {

constexpr int kThreadSide = 8;
static_assert(kThreads == kBlockRows / kThreadSide * (kBlockColumns / kThreadSide));

// Where a block is in its weight.
struct Block {
    int64_t row;
    int64_t column;
};

// Where a thread is, and how many of its 8 rows and 2 groups are in the weight.
struct Area {
    int64_t row;
    int64_t column;
    int rows;
    int groups;

    __device__ Area(int64_t all_rows, int64_t all_columns, const Block& block) {
        const int thread = static_cast<int>(threadIdx.x);
        row = block.row + thread / (kBlockColumns / kThreadSide) * kThreadSide;
        column = block.column + thread % (kBlockColumns / kThreadSide) * kThreadSide;
        const int64_t rows_left = all_rows - row, groups_left = (all_columns - column) / kGroupSize;
        rows = static_cast<int>(rows_left < 0 ? 0 : rows_left < kThreadSide ? rows_left : kThreadSide);
        groups = static_cast<int>(groups_left < 0 ? 0 : groups_left < 2 ? groups_left : 2);
    }
};

// Four elements, or 0; they are aligned to as many.
template <int kBytes>
__device__ inline Four<kBytes> load_four(const char* from, bool inside) {
    Four<kBytes> four = {};
    if (inside) four = *reinterpret_cast<const Four<kBytes>*>(from);
    return four;
}

// Eight neighbouring elements, those of a missing group 0; aligned to eight where `wide`.
template <int kBytes>
__device__ inline void load_groups(const char* from, int groups, bool wide, Four<kBytes>* left,
                                   Four<kBytes>* right) {
    if (wide && kBytes < 4) {
        Words<2 * kBytes> both = {};
        if (groups > 0) both = *reinterpret_cast<const Words<2 * kBytes>*>(from);
#pragma unroll
        for (int i = 0; i < kBytes; ++i) {
            left->word[i] = both.word[i];
            right->word[i] = both.word[kBytes + i];
        }
    } else {
        *left = load_four<kBytes>(from, groups > 0);
        *right = load_four<kBytes>(from + kGroupSize * kBytes, groups > 1);
    }
}

// Two kept elements of each of `count` groups, up to two; aligned to two elements, or to four where `wide`.
template <int kBytes>
__device__ inline void store_pairs(char* to, const Four<kBytes>& pairs, int count, bool wide) {
    if (wide) {
        if (count > 0) *reinterpret_cast<Four<kBytes>*>(to) = pairs;
    } else if (kBytes == 1) {
        if (count > 0) *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(pairs.word[0]);
        if (count > 1) *reinterpret_cast<uint16_t*>(to + 2) = static_cast<uint16_t>(pairs.word[0] >> 16);
    } else {
        constexpr int kHalf = kBytes / 2 > 0 ? kBytes / 2 : 1;
        Words<kHalf> first, second;
#pragma unroll
        for (int i = 0; i < kHalf; ++i) {
            first.word[i] = pairs.word[i];
            second.word[i] = pairs.word[kBytes / 2 + i];
        }
        if (count > 0) *reinterpret_cast<Words<kHalf>*>(to) = first;
        if (count > 1) *reinterpret_cast<Words<kHalf>*>(to + 2 * kBytes) = second;
    }
}

// Keeps two of each of a tile's four columns, and puts them behind what is kept of the tile above.
template <int kBytes>
__device__ inline void keep_columns(const Four<kBytes> (&columns)[4], uint32_t nibbles, bool is_upper,
                                    Four<kBytes>* kept) {
    const Keeper<kBytes> keeper(nibbles);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Four<kBytes> two = keeper.keep(columns[i], i);
        kept[i] = is_upper ? two : join(kept[i], two);
    }
}

// Stores what is kept of a thread's eight columns in the transpose, of which a row has `rows` weights.
template <int kBytes>
__device__ inline void store_columns(const Area& area, int64_t rows, const Four<kBytes> (&kept)[kThreadSide],
                                     void* values_t) {
    const bool wide = rows % kThreadSide == 0;
    const int64_t pitch = rows * kBytes / 2;
    char* const to = static_cast<char*>(values_t) + area.column * pitch + area.row * kBytes / 2;
#pragma unroll
    for (int i = 0; i < kThreadSide; ++i) {
        store_pairs<kBytes>(to + i * pitch, kept[i], i / 4 < area.groups ? area.rows / 4 : 0, wide);
    }
}

// Notes the bytes of metadata of a thread's eight columns, of which a word has four.
__device__ inline void note_columns(const uint32_t (&bytes)[2], uint8_t* first) {
#pragma unroll
    for (int i = 0; i < kThreadSide; ++i) {
        first[i * (kBlockRows / 8)] = static_cast<uint8_t>(bytes[i / 4] >> 8 * (i % 4));
    }
}

}  // namespace sparsekern::cuda
