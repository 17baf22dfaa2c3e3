#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "compute_values.h"
#include "panels.h"
#include "sparsekern/two_four_linear.h"
#include "team.h"
#include "two_four_rows.h"

namespace sparsekern {
namespace {

// Samples that share the decoding of a row, as many as a core's own cache holds, and rows whose results are
// written together.
constexpr int64_t kSamplesTogether = 128;
constexpr int64_t kRowsTogether = 64;

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

    int64_t count() const { return x_.rows; }
    const uint8_t* data(int64_t sample) const { return quantized_.data() + sample * columns_; }
    float scale(int64_t sample) const { return scales_[sample]; }

    // Inside a parallel region; `room` is for a sample.
    void fill(float* room) {
#pragma omp for schedule(static)
        for (int64_t m = 0; m < x_.rows; ++m) {
            const int64_t first = m / kFewSamples * kFewSamples;
            const int64_t samples = std::min<int64_t>(kFewSamples, x_.rows - first);
            uint8_t* const to = quantized_.data() + first * columns_ + (m - first) * table_.step;
            scales_[m] = table_.quantize(widened(m, room), x_.cols, scale_, to, samples * table_.step);
        }
    }

private:
    // Where the sample lies, or a copy of it.
    const float* widened(int64_t m, float* copy) const {
        const T* const sample = static_cast<const T*>(x_.data) + m * x_.row_stride;
        if constexpr (std::is_same<T, float>::value) {
            if (x_.col_stride == 1) return sample;
        }
        pack(kernels<float>(), Samples<const T>{sample, x_.col_stride, 1, x_.cols, 1}, copy, x_.cols);
        return copy;
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
        Team team;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            auto scratch = team.scratch([&] { return Scratch(rows_.columns); });
            if (scratch) {
                samples_.fill(scratch->sample.data());
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
        Buffer<float> sample;
        Buffer<int32_t> sums;
        Buffer<float> results;
        Buffer<unsigned char> room;

        explicit Scratch(int64_t columns)
            : sample(columns),
              sums(kSamplesTogether * kRowsTogether),
              results(kRowsTogether),
              room(divide_rounding_up(columns, two_four_int8_kernels().step) * two_four_int8_kernels().room) {
        }
    };

    int64_t rows_together(int threads) const {
        const int64_t even = round_to_multiple(divide_rounding_up(rows_.rows, 2 * threads), 8);
        return std::clamp<int64_t>(even, 8, kRowsTogether);
    }

    void multiply(int64_t row, int64_t rows, Scratch& scratch) const {
        for (int64_t first = 0; first < samples_.count(); first += kSamplesTogether) {
            const int64_t count = std::min(kSamplesTogether, samples_.count() - first);
            two_four_int8_kernels().product({rows_.block(row, rows, 0, rows_.columns), samples_.data(first),
                                             count, scratch.sums.data(), kRowsTogether, scratch.room.data()});
            for (int64_t m = 0; m < count; ++m) {
                finish(first + m, row, rows, scratch.sums.data() + m * kRowsTogether, scratch.results.data());
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
    if (dtype == DType::float64) throw std::invalid_argument("dtype: expected float32 or bfloat16");
    const TwoFourWeight& packed = weight.weight;
    const int64_t size = element_bytes(dtype);
    check_threads(threads);
    check_two_four("values", packed, sizeof(int8_t));
    if (packed.cols > kMostColumns) {
        throw std::invalid_argument("columns: expected at most " + std::to_string(kMostColumns) +
                                    " for sums in int32, got " + std::to_string(packed.cols));
    }
    check_values("scale", weight.scale, packed.rows, sizeof(float));
    if (x_scale != nullptr) check_address("x_scale", x_scale, 1, sizeof(float));
    check_matrix("x", x, x.rows, packed.cols, size);
    check_matrix("y", y, x.rows, packed.rows, size);
    if (bias.data != nullptr) check_values("bias", bias, packed.rows, size);
    if (x.rows == 0 || packed.rows == 0) return;
    const double samples = static_cast<double>(x.rows);
    const double kept = static_cast<double>(packed.rows * packed.cols / 2);
    const int worthwhile =
        worthwhile_threads(threads, (samples + 1) * kept / 2, samples * static_cast<double>(x.cols + y.cols));
    if (dtype == DType::float32) return Int8Product<float>(weight, x, x_scale, bias, y).run(worthwhile);
    Int8Product<BFloat16>(weight, x, x_scale, bias, y).run(worthwhile);
}

}  // namespace sparsekern
