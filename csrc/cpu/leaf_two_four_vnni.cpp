// The int8 product with AVX-512 VNNI and VBMI (Ice Lake and Zen 4 onwards): 64 products in one instruction.
#define SPARSEKERN_ISA avx512_vnni
#define SPARSEKERN_VECTOR_BYTES 64

// GCC 12 takes the undefined operands that its own intrinsics start from for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "leaf_two_four_quantize.inl"
#include "two_four_kernels.h"

namespace sparsekern {
namespace avx512_vnni {
namespace {

constexpr int kPairs = 2;  // of rows that share the loads of features
constexpr int kRows = 2 * kPairs;
constexpr int64_t kStep = 128;      // columns whose values fill a vector
constexpr int64_t kStepBytes = 16;  // of metadata
constexpr int kOffset = 128;        // what samples have added: the instruction takes one operand unsigned

struct EvenOdd {
    __m512i even;
    __m512i odd;
};

// Two rows' vectors in turn, by the eight values of sixteen columns (see leaf_two_four_pairs.inl).
inline EvenOdd swap_eights(__m512i a, __m512i b) {
    return {_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)};
}

// The 2-bit columns of a row's metadata, a byte each with more above them.
inline __m512i columns_of(__m128i metadata) {
    const __m512i shifts = _mm512_set1_epi64(0x0E0C0A0806040200);
    return _mm512_multishift_epi64_epi8(shifts, _mm512_cvtepu16_epi64(metadata));
}

// Which of its sixteen columns each value multiplies.
inline __m512i lanes_of(__m512i columns) {
    const __m512i group = _mm512_set1_epi64(0x0C0C080804040000);
    constexpr int kFirstAndSecondOrThird = 0xEA;
    return _mm512_ternarylogic_epi32(columns, _mm512_set1_epi8(3), group, kFirstAndSecondOrThird);
}

// The sums of two pairs of rows, one of each row.
inline __m128i fold(__m512i pair) {
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(pair), _mm512_extracti64x4_epi64(pair, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
inline __m128i sum_rows(__m512i first, __m512i second) { return _mm_hadd_epi32(fold(first), fold(second)); }

// What a step has added up, for `samples` samples: sums by pair of rows, and the sums of the rows' values
// where these are new. Not inlined: what comes behind the loop would compete for its registers.
__attribute__((noinline)) void finish_rows(const Int8Work& work, int64_t first, int64_t samples,
                                           const __m512i* sums, const __m512i* of_values) {
    const int64_t rows = work.block.rows - first;
    const auto live = static_cast<__mmask8>(rows >= kRows ? 0xF : (1u << rows) - 1);
    int32_t* const row_sums = work.row_sums + first;
    if (work.fresh) _mm_mask_storeu_epi32(row_sums, live, sum_rows(of_values[0], of_values[1]));
    const __m128i of_rows = _mm_maskz_loadu_epi32(live, row_sums);
    const __m128i excess = _mm_mullo_epi32(of_rows, _mm_set1_epi32(kOffset));
    for (int64_t m = 0; m < samples; ++m) {
        int32_t* const to = work.sums + m * work.pitch + first;
        const __m128i sum = sum_rows(sums[kPairs * m], sums[kPairs * m + 1]);
        _mm_mask_storeu_epi32(to, live, _mm_sub_epi32(sum, excess));
    }
}

// Four rows' places in memory; where fewer are left, the last one stands in for those missing.
struct RowPlaces {
    const int8_t* values[kRows];
    const unsigned char* metadata[kRows];

    RowPlaces(const TwoFourRows<int8_t>& block, int64_t first) {
        for (int i = 0; i < kRows; ++i) {
            const int64_t row = first + i < block.rows ? first + i : block.rows - 1;
            values[i] = block.values + row * block.value_stride;
            metadata[i] = block.metadata + row * block.metadata_stride;
        }
    }
};

// kRows rows or fewer, from `first` on. kFresh: the sums of the rows' values are not known
// yet.
template <int M, bool kFresh>
void multiply_rows(const Int8Work& work, int64_t first) {
    const RowPlaces at(work.block, first);
    const int64_t ahead = kRows * work.block.value_stride;
    const __m512i ones = _mm512_set1_epi8(1);
    const uint8_t* x = work.x;
    __m512i sum[M][kPairs];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sum[m][0] = sum[m][1] = _mm512_setzero_si512();
    __m512i of_values[kPairs] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t column = 0; column < work.block.columns; column += kStep, x += M * kStep) {
        const int64_t left = work.block.columns - column;
        const __mmask64 values = left >= kStep ? ~__mmask64{0} : (__mmask64{1} << left / 2) - 1;
        const auto bytes = static_cast<__mmask16>(left >= kStep ? 0xFFFF : (1u << (left + 7) / 8) - 1);
        EvenOdd row[kPairs], index[kPairs];
#pragma GCC unroll 2
        for (int p = 0; p < kPairs; ++p) {
            const int8_t *a = at.values[2 * p] + column / 2, *b = at.values[2 * p + 1] + column / 2;
            _mm_prefetch(reinterpret_cast<const char*>(a + ahead), _MM_HINT_T1);
            _mm_prefetch(reinterpret_cast<const char*>(b + ahead), _MM_HINT_T1);
            row[p] = swap_eights(_mm512_maskz_loadu_epi8(values, a), _mm512_maskz_loadu_epi8(values, b));
            index[p] = swap_eights(
                lanes_of(columns_of(_mm_maskz_loadu_epi8(bytes, at.metadata[2 * p] + column / 8))),
                lanes_of(columns_of(_mm_maskz_loadu_epi8(bytes, at.metadata[2 * p + 1] + column / 8))));
            if (kFresh) {
                of_values[p] = _mm512_dpbusd_epi32(of_values[p], ones, row[p].even);
                of_values[p] = _mm512_dpbusd_epi32(of_values[p], ones, row[p].odd);
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const __m512i even = _mm512_load_si512(x + m * kStep),
                          odd = _mm512_load_si512(x + m * kStep + 64);
#pragma GCC unroll 2
            for (int p = 0; p < kPairs; ++p) {
                sum[m][p] =
                    _mm512_dpbusd_epi32(sum[m][p], _mm512_shuffle_epi8(even, index[p].even), row[p].even);
                sum[m][p] =
                    _mm512_dpbusd_epi32(sum[m][p], _mm512_shuffle_epi8(odd, index[p].odd), row[p].odd);
            }
        }
    }
    __m512i sums[M * kPairs];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        sums[kPairs * m] = sum[m][0];
        sums[kPairs * m + 1] = sum[m][1];
    }
    finish_rows(work, first, M, sums, of_values);
}

template <int M>
void int8_product(const Int8Work& given) {
    const Int8Work work = given;
    for (int64_t r = 0; r < work.block.rows; r += kRows) {
        work.fresh ? multiply_rows<M, true>(work, r) : multiply_rows<M, false>(work, r);
    }
}

template <int M>
void set_from(TwoFourInt8Kernels& table) {
    table.product[M] = int8_product<M>;
    if constexpr (M < kFewSamples) set_from<M + 1>(table);
}

}  // namespace

void set_two_four(TwoFourInt8Kernels& table) {
    table.step = kStep;
    table.quantize = quantize<kStep, kOffset>;
    set_from<1>(table);
}

}  // namespace avx512_vnni
}  // namespace sparsekern
