// The transpose of blocks of a 2:4 weight, as lists of what each column keeps.

#pragma once

#include "leaf_panels.inl"
#include "two_four_kernels.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

#if SPARSEKERN_VECTOR_BYTES == 64
// The columns that a byte of metadata names, as bits.
struct GroupMasks {
    unsigned char bits[256] = {};

    constexpr GroupMasks() {
        for (int byte = 0; byte < 256; ++byte) {
            const int low = 1 << (byte & 3) | 1 << (byte >> 2 & 3);
            const int high = 1 << (byte >> 4 & 3) | 1 << (byte >> 6);
            bits[byte] = static_cast<unsigned char>(low | high << 4);
        }
    }
};
constexpr GroupMasks kGroupMasks;

inline FloatVec expand(uint32_t mask, FloatVec v) {
    return (FloatVec)_mm512_maskz_expand_ps(static_cast<__mmask16>(mask), (__m512)v);
}
inline DoubleVec expand(uint32_t mask, DoubleVec v) {
    return (DoubleVec)_mm512_maskz_expand_pd(static_cast<__mmask8>(mask), (__m512d)v);
}
inline FloatVec compress(uint32_t mask, FloatVec v) {
    return (FloatVec)_mm512_maskz_compress_ps(static_cast<__mmask16>(mask), (__m512)v);
}
inline DoubleVec compress(uint32_t mask, DoubleVec v) {
    return (DoubleVec)_mm512_maskz_compress_pd(static_cast<__mmask8>(mask), (__m512d)v);
}

// A square of as many rows and columns as a vector has lanes, in registers: dense and transposed, each column
// is compressed to what it keeps.
template <class T>
class ColumnSquare {
    using A = AccumulateType<T>;
    static constexpr int64_t kSide = kLanes<A>;

public:
    // Rows from `row` on, and columns from `column` on, as far as the block has them.
    ColumnSquare(const TwoFourRows<T>& block, int64_t row, int64_t column) {
        const int64_t columns = block.columns - column < kSide ? block.columns - column : kSide;
        alignas(64) uint32_t masks[16] = {};
#pragma GCC unroll 16
        for (int64_t i = 0; i < kSide; ++i) {
            values_[i] = Vec<A>{};
            if (row + i >= block.rows) continue;
            const T* from = block.values + (row + i) * block.value_stride + column / 2;
            const unsigned char* metadata = block.metadata + (row + i) * block.metadata_stride + column / 8;
            masks[i] = kGroupMasks.bits[metadata[0]];
            if (kSide == 16 && columns > 8) masks[i] |= uint32_t{kGroupMasks.bits[metadata[1]]} << 8;
            if (columns < kSide) masks[i] &= (1u << columns) - 1;
            values_[i] = expand(masks[i], load_range_as(from, 0, columns / 2));
        }
        transpose_square<A>(values_);
        masks_ = _mm512_load_si512(masks);
    }

    void append(int64_t row, int64_t columns, const ColumnLists<A>& lists) const {
        const __m512i rows = _mm512_add_epi32(
            _mm512_set1_epi32(static_cast<int>(row)),
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
#pragma GCC unroll 16
        for (int64_t c = 0; c < kSide; ++c) {
            if (c >= columns) return;
            const __mmask16 kept = _mm512_test_epi32_mask(masks_, _mm512_set1_epi32(1 << c));
            const int64_t at = c * lists.capacity + lists.counts[c];
            store<A>(lists.values + at, compress(kept, values_[c]));
            const __m512i named = _mm512_maskz_compress_epi32(kept, rows);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(lists.rows + at), _mm512_cvtepi32_epi16(named));
            lists.counts[c] += __builtin_popcount(kept);
        }
    }

private:
    Vec<A> values_[kSide];
    __m512i masks_;
};

template <class T>
void list_columns(const TwoFourRows<T>& given, const ColumnLists<AccumulateType<T>>& lists) {
    constexpr int64_t side = kLanes<AccumulateType<T>>;
    const TwoFourRows<T> block = given;
    for (int64_t c = 0; c < block.columns; ++c) lists.counts[c] = 0;
    for (int64_t row = 0; row < block.rows; row += side) {
        for (int64_t c = 0; c < block.columns; c += side) {
            const ColumnLists<AccumulateType<T>> here = {lists.values + c * lists.capacity,
                                                         lists.rows + c * lists.capacity, lists.counts + c,
                                                         lists.capacity};
            ColumnSquare<T>(block, row, c).append(row, block.columns - c, here);
        }
    }
}
#else
template <class T>
void list_columns(const TwoFourRows<T>& given, const ColumnLists<AccumulateType<T>>& lists) {
    const TwoFourRows<T> block = given;
    for (int64_t c = 0; c < block.columns; ++c) lists.counts[c] = 0;
    for (int64_t row = 0; row < block.rows; ++row) {
        const T* value = block.values + row * block.value_stride;
        const unsigned char* metadata = block.metadata + row * block.metadata_stride;
        for (int64_t i = 0; i < block.columns / 2; ++i) {
            const int64_t column = i / 2 * 4 + (metadata[i / 4] >> i % 4 * 2 & 3);
            const int64_t at = column * lists.capacity + lists.counts[column]++;
            lists.values[at] = widen(value[i]);
            lists.rows[at] = static_cast<uint16_t>(row);
        }
    }
}
#endif

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
