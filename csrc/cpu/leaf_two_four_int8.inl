// Quantized samples times the rows of a 2:4 weight of int8, in exact sums of int32.

#include "leaf_two_four_quantize.inl"
#include "two_four_kernels.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

#if SPARSEKERN_VECTOR_BYTES == 16
constexpr int64_t kInt8Step = kQuantizedUnit;

int32_t int8_dot(const TwoFourRows<int8_t>& block, int64_t row, const uint8_t* x, int64_t stride) {
    const int8_t* value = block.values + row * block.value_stride;
    const unsigned char* metadata = block.metadata + row * block.metadata_stride;
    int32_t sum = 0;
    for (int64_t i = 0; i < block.columns / 2; ++i) {
        const int64_t column = i / 2 * 4 + (metadata[i / 4] >> i % 4 * 2 & 3);
        const uint8_t byte = x[column / kInt8Step * stride + column % kInt8Step];
        sum += int32_t{value[i]} * static_cast<int8_t>(byte);
    }
    return sum;
}

void multiply_group(const Int8Work& work, int64_t begin, int64_t samples, const uint8_t* x) {
    for (int64_t r = 0; r < work.block.rows; ++r) {
        for (int64_t m = 0; m < samples; ++m) {
            work.sums[(begin + m) * work.pitch + r] =
                int8_dot(work.block, r, x + m * kInt8Step, samples * kInt8Step);
        }
    }
}
#else
// Rows in twos, as in leaf_two_four_pairs.inl, with eight values, those of sixteen columns, in place of a
// pair. All 256-bit: a wider product of bytes needs VNNI.
constexpr int64_t kInt8Step = 64;

// Which of the sixteen columns each of the eight values of two bytes of metadata multiplies.
inline int64_t eight_columns(const unsigned char* metadata) {
    uint16_t word;
    std::memcpy(&word, metadata, sizeof(word));
    return static_cast<int64_t>(_pdep_u64(word, 0x0303030303030303u) | 0x0C0C080804040000u);
}

template <int M>
class Int8Rows {
public:
    Int8Rows(const TwoFourRows<int8_t>& block, int64_t first) {
        for (int i = 0; i < 2; ++i) {
            const int64_t row = first + i < block.rows ? first + i : block.rows - 1;
            values_[i] = block.values + row * block.value_stride;
            metadata_[i] = block.metadata + row * block.metadata_stride;
        }
    }

    void multiply(int64_t columns, const uint8_t* x) {
        const int64_t whole = columns / kInt8Step;
        for (int64_t step = 0; step < whole; ++step, x += M * kInt8Step) {
            add_step(values_[0] + 32 * step, values_[1] + 32 * step, metadata_[0] + 8 * step,
                     metadata_[1] + 8 * step, x);
        }
        const int64_t rest = columns % kInt8Step;
        if (rest == 0) return;
        int8_t values[2][32] = {};
        unsigned char metadata[2][8] = {};
        for (int i = 0; i < 2; ++i) {
            std::memcpy(values[i], values_[i] + 32 * whole, static_cast<size_t>(rest / 2));
            std::memcpy(metadata[i], metadata_[i] + 8 * whole, static_cast<size_t>((rest + 7) / 8));
        }
        add_step(values[0], values[1], metadata[0], metadata[1], x);
    }

    void finish(int32_t* sums, int64_t pitch, int64_t rows) const {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const __m128i four =
                _mm_add_epi32(_mm256_castsi256_si128(sum_[m]), _mm256_extracti128_si256(sum_[m], 1));
            const __m128i two = _mm_hadd_epi32(four, four);
            sums[m * pitch] = _mm_cvtsi128_si32(two);
            if (rows > 1) sums[m * pitch + 1] = _mm_extract_epi32(two, 1);
        }
    }

private:
    void add_step(const int8_t* a, const int8_t* b, const unsigned char* of_a, const unsigned char* of_b,
                  const uint8_t* x) {
        const __m256i row_a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
        const __m256i row_b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
        const __m256i even = _mm256_unpacklo_epi64(row_a, row_b), odd = _mm256_unpackhi_epi64(row_a, row_b);
        const __m256i pick_even = _mm256_setr_epi64x(eight_columns(of_a), eight_columns(of_b),
                                                     eight_columns(of_a + 4), eight_columns(of_b + 4));
        const __m256i pick_odd = _mm256_setr_epi64x(eight_columns(of_a + 2), eight_columns(of_b + 2),
                                                    eight_columns(of_a + 6), eight_columns(of_b + 6));
        const __m256i size_even = _mm256_abs_epi8(even), size_odd = _mm256_abs_epi8(odd);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const auto* const sample = reinterpret_cast<const __m256i*>(x + m * kInt8Step);
            add(m, size_even, even, _mm256_shuffle_epi8(_mm256_loadu_si256(sample), pick_even));
            add(m, size_odd, odd, _mm256_shuffle_epi8(_mm256_loadu_si256(sample + 1), pick_odd));
        }
    }

    // The instruction multiplies unsigned by signed bytes and adds two products in 16 bits: 2 * 128 * 127
    // fits.
    void add(int m, __m256i size, __m256i sign, __m256i x) {
        const __m256i products = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, sign));
        sum_[m] = _mm256_add_epi32(sum_[m], _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
    }

    const int8_t* values_[2];
    const unsigned char* metadata_[2];
    __m256i sum_[M] = {};
};

template <int M>
void multiply_rows(const Int8Work& work, int64_t begin, const uint8_t* x) {
    for (int64_t r = 0; r < work.block.rows; r += 2) {
        Int8Rows<M> rows(work.block, r);
        rows.multiply(work.block.columns, x);
        rows.finish(work.sums + begin * work.pitch + r, work.pitch, work.block.rows - r);
    }
}

template <int M = kFewSamples>
void multiply_group(const Int8Work& work, int64_t begin, int64_t samples, const uint8_t* x) {
    if (samples == M) return multiply_rows<M>(work, begin, x);
    if constexpr (M > 1) return multiply_group<M - 1>(work, begin, samples, x);
}
#endif

void int8_product(const Int8Work& given) {
    const Int8Work work = given;
    const int64_t columns = (work.block.columns + kInt8Step - 1) / kInt8Step * kInt8Step;
    for (int64_t m = 0; m < work.samples; m += kFewSamples) {
        const int64_t samples = work.samples - m < kFewSamples ? work.samples - m : kFewSamples;
        multiply_group(work, m, samples, work.x + m * columns);
    }
}

void set_int8(TwoFourInt8Kernels& table) {
    table.step = kInt8Step;
    table.room = 0;
    table.quantize = quantize<kInt8Step, 0>;
    table.product = int8_product;
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
