// The int8 product with AVX-512 VNNI and VBMI (Ice Lake and Zen 4 onwards): 64 products in one instruction.
#define SPARSEKERN_ISA avx512_vnni
#define SPARSEKERN_VECTOR_BYTES 64

// GCC 12 takes the undefined operands that its own intrinsics start from for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "two_four_kernels.h"

namespace sparsekern {
namespace avx512_vnni {
namespace {

constexpr int kPairs = 2;  // of rows that share the loads of features
constexpr int kRows = 2 * kPairs;
constexpr int64_t kStep = 128;       // columns whose values fill a vector
constexpr int64_t kStepBytes = 16;   // of metadata
constexpr int kOffset = 128;         // what samples have added: the instruction takes one operand unsigned

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
inline __m128i sum_rows(const __m512i (&sum)[kPairs]) {
    __m128i four[kPairs];
#pragma GCC unroll 2
    for (int p = 0; p < kPairs; ++p) {
        const __m256i half =
            _mm256_add_epi32(_mm512_castsi512_si256(sum[p]), _mm512_extracti64x4_epi64(sum[p], 1));
        four[p] = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    }
    return _mm_hadd_epi32(four[0], four[1]);
}

template <int M>
class Int8Rows {
public:
    // Rows from `first` on; where fewer than kRows are left, the last one stands in for those missing.
    Int8Rows(const TwoFourRows<int8_t>& block, int64_t first) {
        for (int i = 0; i < kRows; ++i) {
            const int64_t row = first + i < block.rows ? first + i : block.rows - 1;
            values_[i] = block.values + row * block.value_stride;
            metadata_[i] = block.metadata + row * block.metadata_stride;
        }
        ahead_ = kRows * block.value_stride;
    }

    template <bool kFresh>
    void multiply(int64_t columns, const uint8_t* x) {
        const int64_t whole = columns / kStep;
        for (int64_t step = 0; step < whole; ++step, x += M * kStep) {
            for (int i = 0; i < kRows; ++i) __builtin_prefetch(values_[i] + step * 64 + ahead_, 0, 2);
            add_step<kFresh>(step, x, ~__mmask64{0}, 0xFFFF);
        }
        const int64_t rest = columns % kStep;
        if (rest == 0) return;
        add_step<kFresh>(whole, x, (__mmask64{1} << rest / 2) - 1,
                         static_cast<__mmask16>((1u << (rest + 7) / 8) - 1));
    }

    // `row_sums` holds each row's sum of values, or is given it if kFresh.
    template <bool kFresh>
    void finish(int32_t* sums, int64_t pitch, int32_t* row_sums, int64_t rows) const {
        const auto live = static_cast<__mmask8>(rows >= kRows ? 0xF : (1u << rows) - 1);
        __m128i of_values;
        if (kFresh) {
            of_values = sum_rows(of_values_);
            _mm_mask_storeu_epi32(row_sums, live, of_values);
        } else {
            of_values = _mm_maskz_loadu_epi32(live, row_sums);
        }
        const __m128i excess = _mm_mullo_epi32(of_values, _mm_set1_epi32(kOffset));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            _mm_mask_storeu_epi32(sums + m * pitch, live, _mm_sub_epi32(sum_rows(sum_[m]), excess));
        }
    }

private:
    template <bool kFresh>
    void add_step(int64_t step, const uint8_t* x, __mmask64 values, __mmask16 bytes) {
        EvenOdd row[kPairs], index[kPairs];
#pragma GCC unroll 2
        for (int p = 0; p < kPairs; ++p) {
            row[p] = swap_eights(_mm512_maskz_loadu_epi8(values, values_[2 * p] + step * 64),
                                 _mm512_maskz_loadu_epi8(values, values_[2 * p + 1] + step * 64));
            index[p] = swap_eights(
                lanes_of(columns_of(_mm_maskz_loadu_epi8(bytes, metadata_[2 * p] + step * kStepBytes))),
                lanes_of(columns_of(_mm_maskz_loadu_epi8(bytes, metadata_[2 * p + 1] + step * kStepBytes))));
            if (kFresh) {
                const __m512i ones = _mm512_set1_epi8(1);
                of_values_[p] = _mm512_dpbusd_epi32(of_values_[p], ones, row[p].even);
                of_values_[p] = _mm512_dpbusd_epi32(of_values_[p], ones, row[p].odd);
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const __m512i even = _mm512_load_si512(x + m * kStep), odd = _mm512_load_si512(x + m * kStep + 64);
#pragma GCC unroll 2
            for (int p = 0; p < kPairs; ++p) {
                sum_[m][p] =
                    _mm512_dpbusd_epi32(sum_[m][p], _mm512_shuffle_epi8(even, index[p].even), row[p].even);
                sum_[m][p] =
                    _mm512_dpbusd_epi32(sum_[m][p], _mm512_shuffle_epi8(odd, index[p].odd), row[p].odd);
            }
        }
    }

    const int8_t* values_[kRows];
    const unsigned char* metadata_[kRows];
    int64_t ahead_;
    __m512i sum_[M][kPairs] = {};
    __m512i of_values_[kPairs] = {};
};

template <int M, bool kFresh>
void product_rows(const Int8Work& work) {
    for (int64_t r = 0; r < work.block.rows; r += kRows) {
        Int8Rows<M> rows(work.block, r);
        rows.template multiply<kFresh>(work.block.columns, work.x);
        rows.template finish<kFresh>(work.sums + r, work.pitch, work.row_sums + r, work.block.rows - r);
    }
}

template <int M>
void int8_product(const Int8Work& given) {
    const Int8Work work = given;
    return work.fresh ? product_rows<M, true>(work) : product_rows<M, false>(work);
}

template <int M>
void set_from(TwoFourInt8Kernels& table) {
    table.product[M] = int8_product<M>;
    if constexpr (M < kFewSamples) set_from<M + 1>(table);
}

}  // namespace

void set_two_four(TwoFourInt8Kernels& table) {
    table.step = kStep;
    table.offset = kOffset;
    set_from<1>(table);
}

}  // namespace avx512_vnni
}  // namespace sparsekern
