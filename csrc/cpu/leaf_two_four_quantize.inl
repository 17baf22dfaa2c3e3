// Samples of float32 to int8, laid out for the int8 product. Nothing here can be fused or reordered into
// another result, so every instruction set gives the same bytes.

#pragma once

#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

typedef int32_t IntVec __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES)));
typedef uint8_t ByteVec __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES / 4)));

constexpr float kLargestQuantized = 127.0f;
constexpr int64_t kQuantizedUnit = 16;  // columns that stay side by side

// The largest |x|, NaN where there is one: as integers, magnitudes are in the order of their size, and NaN is
// above all.
inline float largest_magnitude(const float* x, int64_t count) {
    constexpr int64_t lanes = kLanes<float>;
    IntVec largest = {};
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        const IntVec magnitude = (IntVec)load<float>(x + i) & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (i < count) {
        const IntVec magnitude = (IntVec)load_range(x + i, 0, count - i) & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
    }
    int32_t bits = 0;
    for (int64_t lane = 0; lane < lanes; ++lane) bits = largest[lane] > bits ? largest[lane] : bits;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

// Rounded half to even and clamped, plus Offset. What NaN becomes does not matter, but is the same
// everywhere.
template <int Offset>
inline ByteVec quantized(FloatVec x, float scale) {
    constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23: float32 beside it are whole numbers
    FloatVec q = x / scale;
    q = q > -kLargestQuantized ? q : FloatVec{} - kLargestQuantized;
    q = q < kLargestQuantized ? q : FloatVec{} + kLargestQuantized;
    const WordVec whole = (WordVec)(q + kWhole) + static_cast<uint32_t>(Offset);
    return __builtin_convertvector(whole, ByteVec);
}

// Writes `count` columns and zeros up to a whole step; a step's sixteens of columns of an even number come
// first, and steps are `stride` bytes apart. Returns the scale: `given`, or the largest |x| divided by 127.
template <int64_t Step, int Offset>
float quantize(const float* x, int64_t count, const float* given, uint8_t* to, int64_t stride) {
    constexpr int64_t lanes = kLanes<float>, units = Step / kQuantizedUnit;
    const float largest = largest_magnitude(x, count);
    const float scale = given != nullptr ? *given : largest == 0.0f ? 1.0f : largest / kLargestQuantized;
    for (int64_t column = 0; column < count; column += Step, to += stride) {
        for (int64_t unit = 0; unit < units; ++unit) {
            uint8_t* const place = to + (unit % 2 * (units / 2) + unit / 2) * kQuantizedUnit;
            for (int64_t i = 0; i < kQuantizedUnit; i += lanes) {
                const int64_t first = column + unit * kQuantizedUnit + i;
                const int64_t left = count - first < 0 ? 0 : count - first;
                const FloatVec from = left >= lanes ? load<float>(x + first) : load_range(x + first, 0, left);
                const ByteVec bytes = quantized<Offset>(from, scale);
                std::memcpy(place + i, &bytes, sizeof(bytes));
            }
        }
    }
    const bool has_nan = largest != largest;
    return has_nan ? largest : scale;
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
