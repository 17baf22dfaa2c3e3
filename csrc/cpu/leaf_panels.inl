// Samples into panels and out of them, with the conversions that stored types need.

#pragma once

#include "kernel_table.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

inline Vec<float> load_as(const float* from) { return load<float>(from); }
inline Vec<double> load_as(const double* from) { return load<double>(from); }
inline Vec<float> load_as(const BFloat16* from) {
    HalfWordVec halves;
    std::memcpy(&halves, from, sizeof(halves));
    return from_bfloat16(halves);
}
inline void store_as(float* to, Vec<float> v) { store<float>(to, v); }
inline void store_as(double* to, Vec<double> v) { store<double>(to, v); }
inline void store_as(BFloat16* to, Vec<float> v) {
    const HalfWordVec halves = to_bfloat16(v);
    std::memcpy(to, &halves, sizeof(halves));
}

inline Vec<float> load_range_as(const float* from, int64_t begin, int64_t end) {
    return load_range(from, begin, end);
}
inline Vec<double> load_range_as(const double* from, int64_t begin, int64_t end) {
    return load_range(from, begin, end);
}
inline Vec<float> load_range_as(const BFloat16* from, int64_t begin, int64_t end) {
    return from_bfloat16(load_range(&from->bits, begin, end));
}
inline void store_first_as(float* to, Vec<float> v, int64_t count) { store_first(to, v, count); }
inline void store_first_as(double* to, Vec<double> v, int64_t count) { store_first(to, v, count); }
inline void store_first_as(BFloat16* to, Vec<float> v, int64_t count) {
    store_first(&to->bits, to_bfloat16(v), count);
}

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(BFloat16 v) {
    const uint32_t word = static_cast<uint32_t>(v.bits) << 16;
    float f;
    std::memcpy(&f, &word, sizeof(f));
    return f;
}
inline void narrow(float* to, float v) { *to = v; }
inline void narrow(double* to, double v) { *to = v; }
inline void narrow(BFloat16* to, float v) { to->bits = to_bfloat16(Vec<float>{} + v)[0]; }

// Feature-major samples need no transposing: each feature is already a run.
template <class T, class A>
void pack_runs(const Samples<const T>& from, A* panel, int64_t width) {
    constexpr int64_t lanes = kLanes<A>;
    for (int64_t k = 0; k < from.features; ++k) {
        const T* run = from.data + k * from.feature_stride;
        A* out = panel + k * width;
        int64_t s = 0;
        for (; s + lanes <= from.count; s += lanes) store<A>(out + s, load_as(run + s));
        if (s < from.count) {
            const Vec<A> rest = load_range_as(run + s, 0, from.count - s);
            const int64_t room = width - s;
            if (room < lanes) {
                store_first(out + s, rest, room);
            } else {
                store<A>(out + s, rest);
            }
            s += lanes;
        }
        for (; s < width; ++s) out[s] = A(0);
    }
}

template <class T, class A>
void pack_any(const Samples<const T>& from, A* panel, int64_t width, int64_t feature_begin) {
    for (int64_t k = feature_begin; k < from.features; ++k) {
        const T* feature = from.data + k * from.feature_stride;
        A* out = panel + k * width;
        for (int64_t s = 0; s < from.count; ++s) out[s] = widen(feature[s * from.sample_stride]);
        for (int64_t s = from.count; s < width; ++s) out[s] = A(0);
    }
}

template <class T, class A>
void pack(const Samples<const T>& from, A* panel, int64_t width) {
    constexpr int64_t lanes = kLanes<A>;
    if (from.sample_stride == 1) return pack_runs<T, A>(from, panel, width);
    const bool narrow = width < lanes;
    if (from.feature_stride != 1 || (width % lanes != 0 && !narrow))
        return pack_any<T, A>(from, panel, width, 0);
    const int64_t whole = from.features / lanes * lanes;
    // Along the samples' rows, a few rows at a time: streams that the prefetcher follows.
    for (int64_t s = 0; s < width; s += lanes) {
        for (int64_t k = 0; k < whole; k += lanes) {
            Vec<A> square[lanes];
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) {
                square[i] =
                    s + i < from.count ? load_as(from.data + (s + i) * from.sample_stride + k) : Vec<A>{};
            }
            transpose_square<A>(square);
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) {
                A* out = panel + (k + i) * width + s;
                if (narrow) {
                    store_first(out, square[i], width);
                } else {
                    store<A>(out, square[i]);
                }
            }
        }
    }
    pack_any<T, A>(from, panel, width, whole);
}

template <class T, class A>
void unpack_any(const A* panel, int64_t width, const Samples<T>& to, int64_t feature_begin) {
    for (int64_t s = 0; s < to.count; ++s) {
        for (int64_t k = feature_begin; k < to.features; ++k) {
            narrow(to.data + s * to.sample_stride + k * to.feature_stride, panel[k * width + s]);
        }
    }
}

template <class T, class A>
void unpack_runs(const A* panel, int64_t width, const Samples<T>& to) {
    constexpr int64_t lanes = kLanes<A>;
    for (int64_t k = 0; k < to.features; ++k) {
        const A* from = panel + k * width;
        T* run = to.data + k * to.feature_stride;
        int64_t s = 0;
        for (; s + lanes <= to.count; s += lanes) store_as(run + s, load<A>(from + s));
        if (s < to.count) store_first_as(run + s, load_range(from + s, 0, to.count - s), to.count - s);
    }
}

template <class T, class A>
void unpack(const A* panel, int64_t width, const Samples<T>& to) {
    constexpr int64_t lanes = kLanes<A>;
    if (to.sample_stride == 1) return unpack_runs<T, A>(panel, width, to);
    const bool narrow = width < lanes;
    if (to.feature_stride != 1 || (width % lanes != 0 && !narrow))
        return unpack_any<T, A>(panel, width, to, 0);
    const int64_t whole = to.features / lanes * lanes;
    for (int64_t s = 0; s < to.count; s += lanes) {
        const int64_t live = to.count - s < lanes ? to.count - s : lanes;
        for (int64_t k = 0; k < whole; k += lanes) {
            Vec<A> square[lanes];
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) {
                const A* from = panel + (k + i) * width + s;
                square[i] = narrow ? load_range(from, 0, width) : load<A>(from);
            }
            transpose_square<A>(square);
            for (int64_t i = 0; i < live; ++i) store_as(to.data + (s + i) * to.sample_stride + k, square[i]);
        }
    }
    unpack_any<T, A>(panel, width, to, whole);
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
