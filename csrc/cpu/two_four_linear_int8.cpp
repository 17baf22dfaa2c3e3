#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "buffer.h"
#include "compute_values.h"
#include "panels.h"
#include "sparsekern/two_four_linear.h"
#include "team.h"
#include "two_four_rows.h"

namespace sparsekern {
namespace {

// Rows whose weights stay in a core's own cache while all samples use them.
constexpr int64_t kRowsTogether = 128;
constexpr int64_t kUnit = 16;  // columns that no arrangement parts
constexpr float kLargest = 127.0f;

// The largest |x| of a sample, NaN where it holds one. Of integers, so that it takes no care of order: the bits
// of magnitudes order as these do, and those of NaN are above all.
float largest_magnitude(const float* x, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof(bits));
        largest = std::max(largest, bits & 0x7FFFFFFFu);
    }
    float value;
    std::memcpy(&value, &largest, sizeof(value));
    return value;
}

// Rounded to the nearest integer, half to even, and clamped; what NaN becomes does not matter, but is the same
// everywhere.
void quantize(const float* x, int64_t count, float scale, int8_t* to) {
    constexpr float kIntegers = 12582912.0f;  // 1.5 * 2^23: float32 of this size are whole
    for (int64_t i = 0; i < count; ++i) {
        const float q = x[i] / scale;
        const float above = q > -kLargest ? q : -kLargest;
        const float clamped = above < kLargest ? above : kLargest;
        const float shifted = clamped + kIntegers;
        int32_t bits;
        std::memcpy(&bits, &shifted, sizeof(bits));
        to[i] = static_cast<int8_t>(bits - 0x4B400000);
    }
}

// Samples in groups of kFewSamples, each arranged for the kernels, and their scales.
template <class T>
class QuantizedSamples {
public:
    QuantizedSamples(const InputMatrix& x, const float* scale)
        : x_(x),
          scale_(scale),
          table_(two_four_int8_kernels()),
          columns_(round_to_multiple(x.cols, table_.step)),
          quantized_(x.rows * columns_),
          scales_(x.rows) {}

    int64_t groups() const { return divide_rounding_up(x_.rows, kFewSamples); }
    int64_t size(int64_t group) const { return std::min<int64_t>(kFewSamples, x_.rows - group * kFewSamples); }
    const uint8_t* data(int64_t group) const { return quantized_.data() + group * kFewSamples * columns_; }
    float scale(int64_t sample) const { return scales_[sample]; }

    // Inside a parallel region; `wide` and `narrow` have room for a sample.
    void fill(float* wide, int8_t* narrow) {
#pragma omp for schedule(static)
        for (int64_t m = 0; m < x_.rows; ++m) {
            pack(kernels<float>(), samples_of<T>(x_, m, 1, 0, x_.cols), wide, 1);
            const float largest = largest_magnitude(wide, x_.cols);
            float scale = largest == 0.0f ? 1.0f : largest / kLargest;
            if (scale_ != nullptr) scale = std::isnan(largest) ? largest : *scale_;
            quantize(wide, x_.cols, scale, narrow);
            std::fill(narrow + x_.cols, narrow + columns_, int8_t{0});
            arrange(narrow, m);
            scales_[m] = scale;
        }
    }

private:
    // Of each step, the sixteens of columns of an even number come first.
    void arrange(const int8_t* from, int64_t m) {
        const int64_t group = m / kFewSamples, samples = size(group);
        const int64_t steps = columns_ / table_.step, units = table_.step / kUnit;
        uint8_t* to = quantized_.data() + group * kFewSamples * columns_ + m % kFewSamples * table_.step;
        for (int64_t step = 0; step < steps; ++step, to += samples * table_.step) {
            for (int64_t unit = 0; unit < units; ++unit, from += kUnit) {
                uint8_t* const place = to + (unit % 2 * (units / 2) + unit / 2) * kUnit;
                for (int64_t i = 0; i < kUnit; ++i) place[i] = static_cast<uint8_t>(from[i] + table_.offset);
            }
        }
    }

    const InputMatrix& x_;
    const float* scale_;
    const TwoFourInt8Kernels& table_;
    int64_t columns_;
    Buffer<uint8_t> quantized_;
    Buffer<float> scales_;
};

template <class T>
class Int8Product {
public:
    Int8Product(const TwoFourInt8Weight& weight, const InputMatrix& x, const float* x_scale,
                const InputValues& bias, const OutputMatrix& y)
        : rows_(rows_of<int8_t>(weight.weight)),
          scale_(weight.scale.data),
          bias_(bias.data, bias.data != nullptr ? bias.count : 0),
          y_(y),
          samples_(x, x_scale) {}

    void run(int threads) {
        const int64_t columns = round_to_multiple(rows_.columns, two_four_int8_kernels().step);
        Team team;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            auto scratch = team.scratch([&] { return Scratch(columns); });
            if (scratch) {
                samples_.fill(scratch->wide.data(), scratch->narrow.data());
                const int64_t share = rows_together(threads);
#pragma omp for schedule(static)
                for (int64_t row = 0; row < rows_.rows; row += share) {
                    multiply(row, std::min(share, rows_.rows - row), *scratch);
                }
            }
        }
        team.rethrow();
    }

private:
    struct Scratch {
        Buffer<float> wide;
        Buffer<int8_t> narrow;
        Buffer<int32_t> sums;
        Buffer<int32_t> row_sums;
        Buffer<float> results;

        explicit Scratch(int64_t columns)
            : wide(columns),
              narrow(columns),
              sums(kFewSamples * kRowsTogether),
              row_sums(kRowsTogether),
              results(kRowsTogether) {}
    };

    int64_t rows_together(int threads) const {
        const int64_t even = round_to_multiple(divide_rounding_up(rows_.rows, 2 * threads), 8);
        return std::clamp<int64_t>(even, 8, kRowsTogether);
    }

    void multiply(int64_t row, int64_t rows, Scratch& scratch) const {
        for (int64_t group = 0; group < samples_.groups(); ++group) {
            const int64_t count = samples_.size(group);
            two_four_int8_kernels().product[count]({rows_.block(row, rows, 0, rows_.columns),
                                                    samples_.data(group), count, scratch.sums.data(),
                                                    kRowsTogether, scratch.row_sums.data(), group == 0});
            for (int64_t m = 0; m < count; ++m) {
                finish(group * kFewSamples + m, row, rows, scratch.sums.data() + m * kRowsTogether,
                       scratch.results.data());
            }
        }
    }

    // Compiled for the baseline, so that every instruction set rounds alike.
    void finish(int64_t sample, int64_t row, int64_t rows, const int32_t* sums, float* results) const {
        const float scale = samples_.scale(sample);
        const float* const of_row = scale_ + row;
        for (int64_t r = 0; r < rows; ++r) results[r] = static_cast<float>(sums[r]) * (scale * of_row[r]);
        if (bias_.data() != nullptr) {
            const float* const bias = bias_.data() + row;
            for (int64_t r = 0; r < rows; ++r) results[r] += bias[r];
        }
        T* const to = static_cast<T*>(y_.data) + sample * y_.row_stride + row;
        unpack(kernels<float>(), results, kRowsTogether, Samples<T>{to, 1, y_.row_stride, rows, 1});
    }

    TwoFourRows<int8_t> rows_;
    const float* scale_;
    ComputeValues<T> bias_;
    const OutputMatrix& y_;
    QuantizedSamples<T> samples_;
};

// So that no sum of products of two of at most 127 and 128 overflows.
constexpr int64_t kMostColumns = (int64_t{1} << 31) / (127 * 128) * 2;

}  // namespace

void two_four_linear_int8(DType dtype, const TwoFourInt8Weight& weight, InputMatrix x, const float* x_scale,
                          InputValues bias, OutputMatrix y, int threads) {
    const TwoFourWeight& packed = weight.weight;
    check_threads(threads);
    check_two_four("values", packed);
    if (packed.cols > kMostColumns) {
        throw std::invalid_argument("columns: expected at most " + std::to_string(kMostColumns) +
                                    " for sums in int32, got " + std::to_string(packed.cols));
    }
    check_values("scale", weight.scale, packed.rows);
    check_matrix("x", x, x.rows, packed.cols);
    check_matrix("y", y, x.rows, packed.rows);
    if (bias.data != nullptr) check_values("bias", bias, packed.rows);
    if (x.rows == 0) return;
    const int64_t kept = packed.rows * packed.cols / 2;
    const int worthwhile = worthwhile_threads(threads, (x.rows + 1) * kept / 2, x.rows * (x.cols + y.cols));
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        if constexpr (std::is_same<AccumulateType<T>, float>::value) {
            Int8Product<T>(weight, x, x_scale, bias, y).run(worthwhile);
        } else {
            throw std::invalid_argument("dtype: expected float32 or bfloat16");
        }
    });
}

}  // namespace sparsekern
