// The transpose of blocks of a 2:4 weight, as lists of what each column keeps.

#pragma once

#include "leaf_panels.inl"
#include "two_four_kernels.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

#if SPARSEKERN_VECTOR_BYTES == 64
// The bits of a group's columns that a nibble names. One that names no two comes from behind a row's end.
inline __m128i mask_of_nibble() { return _mm_setr_epi8(0, 0, 0, 0, 3, 0, 0, 0, 5, 6, 0, 0, 9, 10, 12, 0); }

// The bits of the columns that a row keeps, from up to 16 bytes of its metadata.
inline __m128i column_masks(const unsigned char* metadata, int64_t bytes) {
    const auto live = static_cast<__mmask16>(bytes >= 16 ? 0xFFFF : (1u << bytes) - 1);
    const __m128i given = _mm_maskz_loadu_epi8(live, metadata);
    const __m128i table = mask_of_nibble();
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i first = _mm_shuffle_epi8(table, _mm_and_si128(given, nibble));
    const __m128i second = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(given, 4), nibble));
    return _mm_or_si128(first, _mm_slli_epi16(second, 4));
}

// The first `count` values of half a vector, and anything behind them: a whole vector's load would wait for
// the next cache line, though its lanes are not wanted.
inline FloatVec load_half(const float* from, int64_t count) {
    const auto live = static_cast<__mmask8>((1u << count) - 1);
    return (FloatVec)_mm512_castps256_ps512(_mm256_maskz_loadu_ps(live, from));
}
inline DoubleVec load_half(const double* from, int64_t count) {
    const auto live = static_cast<__mmask8>((1u << count) - 1);
    return (DoubleVec)_mm512_castpd256_pd512(_mm256_maskz_loadu_pd(live, from));
}
inline FloatVec load_half(const BFloat16* from, int64_t count) {
    const auto live = static_cast<__mmask8>((1u << count) - 1);
    const __m256i words = _mm256_cvtepu16_epi32(_mm_maskz_loadu_epi16(live, from));
    return (FloatVec)_mm512_castsi512_ps(_mm512_castsi256_si512(_mm256_slli_epi32(words, 16)));
}

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

// As many rows as a vector has lanes, square by square: dense and transposed in registers, each column is
// compressed to what it keeps.
template <class T>
class RowStrip {
    using A = AccumulateType<T>;
    static constexpr int64_t kSide = kLanes<A>;

public:
    // Rows from `first` on; those missing at the end keep nothing.
    RowStrip(const TwoFourRows<T>& block, int64_t first) : columns_(block.columns), first_(first) {
        ahead_ = kSide * block.value_stride;
        __m128i rows[16];
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i) {
            const bool there = i < kSide && first + i < block.rows;
            const int64_t row = there ? first + i : first;
            const unsigned char* metadata = block.metadata + row * block.metadata_stride;
            rows[i] = column_masks(metadata, there ? (block.columns + 7) / 8 : 0);
            values_[i] = block.values + row * block.value_stride;
            _mm_store_si128(reinterpret_cast<__m128i*>(of_row_[i]), rows[i]);
        }
        for (int round = 0; round < 4; ++round) {
            __m128i next[16];
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                next[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
                next[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + 8]);
            }
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) rows[i] = next[i];
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm_store_si128(reinterpret_cast<__m128i*>(of_columns_[i]), rows[i]);
    }

    void append_to(const ColumnLists<A>& lists) const {
        for (int64_t column = 0; column < columns_; column += kSide) {
            // The next rows' part of a cache line: rows are far apart in memory.
            if (column * static_cast<int64_t>(sizeof(T)) % 128 == 0) {
                for (int64_t i = 0; i < kSide; ++i) {
                    __builtin_prefetch(values_[i] + column / 2 + ahead_, 0, 2);
                }
            }
            append_square(column, lists);
        }
    }

private:
    void append_square(int64_t column, const ColumnLists<A>& lists) const {
        const int64_t columns = columns_ - column < kSide ? columns_ - column : kSide;
        Vec<A> square[kSide];
#pragma GCC unroll 16
        for (int64_t i = 0; i < kSide; ++i) {
            uint16_t mask = 0;
            std::memcpy(&mask, of_row_[i] + column / 8, kSide / 8);
            square[i] = expand(mask, load_half(values_[i] + column / 2, columns / 2));
        }
        transpose_square<A>(square);
        const __m512i rows =
            _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first_)),
                             _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        int64_t place = column * lists.capacity;
#pragma GCC unroll 16
        for (int64_t c = 0; c < kSide; ++c, place += lists.capacity) {
            if (c >= columns) return;
            const __m128i masks =
                _mm_load_si128(reinterpret_cast<const __m128i*>(of_columns_[(column + c) / 8]));
            const __mmask16 kept = _mm_test_epi8_mask(masks, _mm_set1_epi8(static_cast<char>(1 << c % 8)));
            int32_t& count = lists.counts[column + c];
            store<A>(lists.values + place + count, compress(kept, square[c]));
            const __m256i named = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(kept, rows));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(lists.rows + place + count), named);
            count += __builtin_popcount(kept);
        }
    }

    int64_t columns_;
    int64_t first_;
    int64_t ahead_;
    const T* values_[16];
    // Byte by byte: of each row by columns in eights, and of each eight columns by rows.
    alignas(16) unsigned char of_row_[16][16];
    alignas(16) unsigned char of_columns_[16][16];
};

template <class T>
void list_columns(const TwoFourRows<T>& given, const ColumnLists<AccumulateType<T>>& lists) {
    const TwoFourRows<T> block = given;
    for (int64_t c = 0; c < block.columns; ++c) lists.counts[c] = 0;
    for (int64_t row = 0; row < block.rows; row += kLanes<AccumulateType<T>>) {
        RowStrip<T>(block, row).append_to(lists);
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
        for (int64_t group = 0; group < block.columns / 4; ++group) {
            const int nibble = metadata[group / 2] >> group % 2 * 4;
            const int64_t column[2] = {4 * group + (nibble & 3), 4 * group + (nibble >> 2 & 3)};
            // Both are read before either is written: metadata that names a column twice adds to it once, so
            // that no list is longer than there are rows.
            const int32_t count[2] = {lists.counts[column[0]], lists.counts[column[1]]};
            for (int i = 0; i < 2; ++i) {
                const int64_t at = column[i] * lists.capacity + count[i];
                lists.values[at] = widen(value[2 * group + i]);
                lists.rows[at] = static_cast<uint16_t>(row);
                lists.counts[column[i]] = count[i] + 1;
            }
        }
    }
}
#endif

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
