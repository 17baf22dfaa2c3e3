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
constexpr int64_t kStep = 128;  // columns whose values fill a vector
constexpr int kOffset = 128;    // what samples have added: the instruction takes one operand unsigned

// Two rows' vectors in turn, by the eight values of sixteen columns (see leaf_two_four_pairs.inl).
struct EvenOdd {
    __m512i even;
    __m512i odd;

    EvenOdd() = default;
    EvenOdd(__m512i a, __m512i b) : even(_mm512_unpacklo_epi64(a, b)), odd(_mm512_unpackhi_epi64(a, b)) {}
};

// A step of four rows, ready to be multiplied: the values, and which of its sixteen columns each takes.
struct DecodedStep {
    EvenOdd values[kPairs];
    EvenOdd picks[kPairs];
};

// Which of its sixteen columns each value multiplies, from 16 bytes of metadata.
inline __m512i picks_of(__m128i metadata) {
    const __m512i shifts = _mm512_set1_epi64(0x0E0C0A0806040200);
    const __m512i group = _mm512_set1_epi64(0x0C0C080804040000);
    const __m512i columns = _mm512_multishift_epi64_epi8(shifts, _mm512_cvtepu16_epi64(metadata));
    constexpr int kFirstAndSecondOrThird = 0xEA;
    return _mm512_ternarylogic_epi32(columns, _mm512_set1_epi8(3), group, kFirstAndSecondOrThird);
}

// Four rows; where fewer are left, the last one stands in for those missing.
class FourRows {
public:
    FourRows(const TwoFourRows<int8_t>& block, int64_t first) : columns_(block.columns) {
        for (int i = 0; i < kRows; ++i) {
            const int64_t row = first + i < block.rows ? first + i : block.rows - 1;
            values_[i] = block.values + row * block.value_stride;
            metadata_[i] = block.metadata + row * block.metadata_stride;
        }
        ahead_ = kRows * block.value_stride;
    }

    // The step at `column`, which may end behind the last column; asks for what the next four rows have
    // there.
    DecodedStep decode(int64_t column) const {
        const int64_t left = columns_ - column;
        const __mmask64 values = left >= kStep ? ~__mmask64{0} : (__mmask64{1} << left / 2) - 1;
        const auto bytes = static_cast<__mmask16>(left >= kStep ? 0xFFFF : (1u << (left + 7) / 8) - 1);
        DecodedStep step;
#pragma GCC unroll 2
        for (int p = 0; p < kPairs; ++p) {
            const int8_t *a = values_[2 * p] + column / 2, *b = values_[2 * p + 1] + column / 2;
            _mm_prefetch(reinterpret_cast<const char*>(a + ahead_), _MM_HINT_T1);
            _mm_prefetch(reinterpret_cast<const char*>(b + ahead_), _MM_HINT_T1);
            step.values[p] = EvenOdd(_mm512_maskz_loadu_epi8(values, a), _mm512_maskz_loadu_epi8(values, b));
            step.picks[p] = EvenOdd(picks_of(_mm_maskz_loadu_epi8(bytes, metadata_[2 * p] + column / 8)),
                                    picks_of(_mm_maskz_loadu_epi8(bytes, metadata_[2 * p + 1] + column / 8)));
        }
        return step;
    }

private:
    int64_t columns_;
    int64_t ahead_;
    const int8_t* values_[kRows];
    const unsigned char* metadata_[kRows];
};

// Sums of two rows each, spread over the lanes.
struct PairSums {
    __m512i of[kPairs];

    void clear() { of[0] = of[1] = _mm512_setzero_si512(); }
    void add(const DecodedStep& step, __m512i even, __m512i odd) {
#pragma GCC unroll 2
        for (int p = 0; p < kPairs; ++p) {
            of[p] = _mm512_dpbusd_epi32(of[p], _mm512_shuffle_epi8(even, step.picks[p].even),
                                        step.values[p].even);
            of[p] =
                _mm512_dpbusd_epi32(of[p], _mm512_shuffle_epi8(odd, step.picks[p].odd), step.values[p].odd);
        }
    }
    // Those of the values alone.
    void count(const DecodedStep& step) {
        const __m512i ones = _mm512_set1_epi8(1);
#pragma GCC unroll 2
        for (int p = 0; p < kPairs; ++p) {
            of[p] = _mm512_dpbusd_epi32(of[p], ones, step.values[p].even);
            of[p] = _mm512_dpbusd_epi32(of[p], ones, step.values[p].odd);
        }
    }
    // The sum of each row.
    __m128i rows() const { return _mm_hadd_epi32(four_lanes(of[0]), four_lanes(of[1])); }

private:
    static __m128i four_lanes(__m512i sum) {
        const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
        return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    }
};

// Writes what was summed for samples [begin, end). Not inlined: what comes behind a loop competes for its
// registers.
__attribute__((noinline)) void put_sums(const Int8Work& work, int64_t row, int64_t begin, int64_t end,
                                        const PairSums* sums, __m128i of_values) {
    const int64_t rows = work.block.rows - row;
    const auto live = static_cast<__mmask8>(rows >= kRows ? 0xF : (1u << rows) - 1);
    const __m128i excess = _mm_mullo_epi32(of_values, _mm_set1_epi32(kOffset));
    for (int64_t m = begin; m < end; ++m) {
        _mm_mask_storeu_epi32(work.sums + m * work.pitch + row, live,
                              _mm_sub_epi32(sums[m - begin].rows(), excess));
    }
}

// M samples and the step that `step_at` gives for each column.
template <int M, class StepAt>
inline void multiply(const StepAt& step_at, int64_t columns, const uint8_t* x, PairSums (&sums)[M]) {
    PairSums sum[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sum[m].clear();
    for (int64_t column = 0; column < columns; column += kStep, x += M * kStep) {
        const DecodedStep& step = step_at(column);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            __m512i even = _mm512_load_si512(x + m * kStep),
                    odd = _mm512_load_si512(x + m * kStep + kStep / 2);
            // Kept in registers: the compiler would load them again for each pair of rows.
            asm("" : "+v"(even), "+v"(odd));
            sum[m].add(step, even, odd);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m] = sum[m];
}

// All samples of a batch of M or fewer: rows are decoded where they are used.
template <int M>
void multiply_once(const Int8Work& work) {
    for (int64_t row = 0; row < work.block.rows; row += kRows) {
        const FourRows rows(work.block, row);
        PairSums sums[M], of_values;
        of_values.clear();
        multiply<M>(
            [&](int64_t column) {
                const DecodedStep step = rows.decode(column);
                of_values.count(step);
                return step;
            },
            work.block.columns, work.x, sums);
        put_sums(work, row, 0, M, sums, of_values.rows());
    }
}

// Samples of a larger batch from `begin` on, with rows decoded before.
template <int M>
void multiply_decoded(const Int8Work& work, int64_t row, int64_t begin, const uint8_t* x,
                      const DecodedStep* decoded, __m128i of_values) {
    PairSums sums[M];
    const auto step_at = [&](int64_t column) -> const DecodedStep& { return decoded[column / kStep]; };
    multiply<M>(step_at, work.block.columns, x, sums);
    put_sums(work, row, begin, begin + M, sums, of_values);
}

template <int M = kFewSamples>
void multiply_decoded_by(int64_t samples, const Int8Work& work, int64_t row, int64_t begin, const uint8_t* x,
                         const DecodedStep* decoded, __m128i of_values) {
    if (samples == M) return multiply_decoded<M>(work, row, begin, x, decoded, of_values);
    if constexpr (M > 1) {
        return multiply_decoded_by<M - 1>(samples, work, row, begin, x, decoded, of_values);
    }
}

void multiply_batch(const Int8Work& work) {
    auto* const decoded = reinterpret_cast<DecodedStep*>(work.room);
    const int64_t steps = (work.block.columns + kStep - 1) / kStep;
    for (int64_t row = 0; row < work.block.rows; row += kRows) {
        const FourRows rows(work.block, row);
        PairSums of_values;
        of_values.clear();
        for (int64_t step = 0; step < steps; ++step) {
            decoded[step] = rows.decode(step * kStep);
            of_values.count(decoded[step]);
        }
        const uint8_t* x = work.x;
        for (int64_t m = 0; m < work.samples; m += kFewSamples, x += kFewSamples * steps * kStep) {
            const int64_t samples = work.samples - m < kFewSamples ? work.samples - m : kFewSamples;
            multiply_decoded_by(samples, work, row, m, x, decoded, of_values.rows());
        }
    }
}

template <int M = kFewSamples>
void product_of(const Int8Work& work) {
    if (work.samples > kFewSamples) return multiply_batch(work);
    if (work.samples == M) return multiply_once<M>(work);
    if constexpr (M > 1) return product_of<M - 1>(work);
}

void int8_product(const Int8Work& given) {
    const Int8Work work = given;
    product_of(work);
}

}  // namespace

void set_two_four(TwoFourInt8Kernels& table) {
    table.step = kStep;
    table.room = sizeof(DecodedStep);
    table.quantize = quantize<kStep, kOffset>;
    table.product = int8_product;
}

}  // namespace avx512_vnni
}  // namespace sparsekern
