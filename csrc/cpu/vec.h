// Vectors of one instruction set through the compiler's vector extensions: no intrinsics, so one source
// serves every level. The including file sets SPARSEKERN_ISA (a namespace) and SPARSEKERN_VECTOR_BYTES.
//
// Files compiled for a level beyond the baseline call no inline function from outside SPARSEKERN_ISA: the
// linker keeps one copy of such a function, perhaps theirs, and then every machine would need their level.
#pragma once

#include <cstdint>
#include <cstring>

namespace sparsekern {
namespace SPARSEKERN_ISA {

constexpr int64_t kBytes = SPARSEKERN_VECTOR_BYTES;

typedef float FloatVec __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES)));
typedef double DoubleVec __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES)));
typedef uint32_t WordVec __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES)));
typedef uint64_t LongVec __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES)));
typedef uint16_t HalfWordVec __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES / 2)));

template <class A>
struct VecOf;
template <>
struct VecOf<float> {
    using type = FloatVec;
    using index = WordVec;
};
template <>
struct VecOf<double> {
    using type = DoubleVec;
    using index = LongVec;
};
template <class A>
using Vec = typename VecOf<A>::type;
template <class A>
constexpr int64_t kLanes = kBytes / static_cast<int64_t>(sizeof(A));

template <class A>
inline Vec<A> load(const A* from) {
    Vec<A> v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}

template <class A>
inline void store(A* to, Vec<A> v) {
    std::memcpy(to, &v, sizeof(v));
}

template <class A>
inline Vec<A> broadcast(A value) {
    return value - Vec<A>{};  // exact for every value, -0 too
}

// Lanes [begin, end) alone are read, and the others become 0; or the first `count` lanes are written. At most
// a whole vector.
#if SPARSEKERN_VECTOR_BYTES == 64
inline FloatVec load_range(const float* from, int64_t begin, int64_t end) {
    return (FloatVec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << end) - (1u << begin)), from);
}
inline DoubleVec load_range(const double* from, int64_t begin, int64_t end) {
    return (DoubleVec)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << end) - (1u << begin)), from);
}
inline void store_first(float* to, FloatVec v, int64_t count) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
}
inline void store_first(double* to, DoubleVec v, int64_t count) {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), (__m512d)v);
}
inline HalfWordVec load_range(const uint16_t* from, int64_t begin, int64_t end) {
    return (HalfWordVec)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << end) - (1u << begin)), from);
}
inline void store_first(uint16_t* to, HalfWordVec v, int64_t count) {
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), (__m256i)v);
}
#else
#if SPARSEKERN_VECTOR_BYTES == 32
inline __m256i lanes_in_range(const float*, int64_t begin, int64_t end) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_and_si256(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(static_cast<int>(begin) - 1)),
                            _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(end)), lane));
}
inline __m256i lanes_in_range(const double*, int64_t begin, int64_t end) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_and_si256(_mm256_cmpgt_epi64(lane, _mm256_set1_epi64x(begin - 1)),
                            _mm256_cmpgt_epi64(_mm256_set1_epi64x(end), lane));
}
inline FloatVec load_range(const float* from, int64_t begin, int64_t end) {
    return (FloatVec)_mm256_maskload_ps(from, lanes_in_range(from, begin, end));
}
inline DoubleVec load_range(const double* from, int64_t begin, int64_t end) {
    return (DoubleVec)_mm256_maskload_pd(from, lanes_in_range(from, begin, end));
}
inline void store_first(float* to, FloatVec v, int64_t count) {
    _mm256_maskstore_ps(to, lanes_in_range(to, 0, count), (__m256)v);
}
inline void store_first(double* to, DoubleVec v, int64_t count) {
    _mm256_maskstore_pd(to, lanes_in_range(to, 0, count), (__m256d)v);
}
#else
template <class A>
inline Vec<A> load_range(const A* from, int64_t begin, int64_t end) {
    Vec<A> v = {};
    for (int64_t i = begin; i < end; ++i) v[i] = from[i];
    return v;
}
template <class A>
inline void store_first(A* to, Vec<A> v, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}
#endif
inline HalfWordVec load_range(const uint16_t* from, int64_t begin, int64_t end) {
    uint16_t halves[kLanes<float>] = {};
    for (int64_t i = begin; i < end; ++i) halves[i] = from[i];
    HalfWordVec v;
    std::memcpy(&v, halves, sizeof(v));
    return v;
}
inline void store_first(uint16_t* to, HalfWordVec v, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}
#endif

// The low halves of a and b, interleaved; and the high halves.
#if defined(__clang__)
#define SPARSEKERN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SPARSEKERN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IndexVec{__VA_ARGS__})
#endif

#define SPARSEKERN_SHUFFLES(TYPE, INDEX, LOW, HIGH) \
    inline TYPE interleave_low(TYPE a, TYPE b) {    \
        using IndexVec [[maybe_unused]] = INDEX;    \
        return SPARSEKERN_SHUFFLE(a, b, LOW);       \
    }                                               \
    inline TYPE interleave_high(TYPE a, TYPE b) {   \
        using IndexVec [[maybe_unused]] = INDEX;    \
        return SPARSEKERN_SHUFFLE(a, b, HIGH);      \
    }

#define SPARSEKERN_LOW_2 0, 2
#define SPARSEKERN_HIGH_2 1, 3
#define SPARSEKERN_LOW_4 0, 4, 1, 5
#define SPARSEKERN_HIGH_4 2, 6, 3, 7
#define SPARSEKERN_LOW_8 0, 8, 1, 9, 2, 10, 3, 11
#define SPARSEKERN_HIGH_8 4, 12, 5, 13, 6, 14, 7, 15
#define SPARSEKERN_LOW_16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SPARSEKERN_HIGH_16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

#if SPARSEKERN_VECTOR_BYTES == 64
SPARSEKERN_SHUFFLES(FloatVec, WordVec, SPARSEKERN_LOW_16, SPARSEKERN_HIGH_16)
SPARSEKERN_SHUFFLES(DoubleVec, LongVec, SPARSEKERN_LOW_8, SPARSEKERN_HIGH_8)
#elif SPARSEKERN_VECTOR_BYTES == 32
SPARSEKERN_SHUFFLES(FloatVec, WordVec, SPARSEKERN_LOW_8, SPARSEKERN_HIGH_8)
SPARSEKERN_SHUFFLES(DoubleVec, LongVec, SPARSEKERN_LOW_4, SPARSEKERN_HIGH_4)
#else
SPARSEKERN_SHUFFLES(FloatVec, WordVec, SPARSEKERN_LOW_4, SPARSEKERN_HIGH_4)
SPARSEKERN_SHUFFLES(DoubleVec, LongVec, SPARSEKERN_LOW_2, SPARSEKERN_HIGH_2)
#endif

// Every other element from a's first on, where b begins one element before a's end.
#define SPARSEKERN_ALTERNATE(TYPE, INDEX, ...)        \
    inline TYPE alternate(TYPE a, TYPE b) {           \
        using IndexVec [[maybe_unused]] = INDEX;      \
        return SPARSEKERN_SHUFFLE(a, b, __VA_ARGS__); \
    }

#if SPARSEKERN_VECTOR_BYTES == 64
SPARSEKERN_ALTERNATE(FloatVec, WordVec, 0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31)
SPARSEKERN_ALTERNATE(DoubleVec, LongVec, 0, 2, 4, 6, 9, 11, 13, 15)
#elif SPARSEKERN_VECTOR_BYTES == 32
SPARSEKERN_ALTERNATE(FloatVec, WordVec, 0, 2, 4, 6, 9, 11, 13, 15)
SPARSEKERN_ALTERNATE(DoubleVec, LongVec, 0, 2, 5, 7)
#else
SPARSEKERN_ALTERNATE(FloatVec, WordVec, 0, 2, 5, 7)
SPARSEKERN_ALTERNATE(DoubleVec, LongVec, 0, 3)
#endif

// Transposes a square of kLanes vectors: each round is a perfect shuffle of the rows.
template <class A>
inline void transpose_square(Vec<A> (&rows)[kLanes<A>]) {
    constexpr int64_t n = kLanes<A>;
    for (int64_t round = 1; round < n; round *= 2) {
        Vec<A> next[n];
#pragma GCC unroll 16
        for (int64_t i = 0; i < n / 2; ++i) {
            next[2 * i] = interleave_low(rows[i], rows[i + n / 2]);
            next[2 * i + 1] = interleave_high(rows[i], rows[i + n / 2]);
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < n; ++i) rows[i] = next[i];
    }
}

// The sum of the lanes, by halves: narrow adds and no shuffles across the whole vector. The order depends on
// the vector's width alone.
template <class A, int Bytes>
struct LaneSum {
    typedef A Whole __attribute__((vector_size(Bytes)));
    typedef A Half __attribute__((vector_size(Bytes / 2)));

    static A of(Whole v) {
        Half halves[2];
        std::memcpy(halves, &v, sizeof(v));
        return LaneSum<A, Bytes / 2>::of(halves[0] + halves[1]);
    }
};
template <>
struct LaneSum<float, 8> {
    typedef float Whole __attribute__((vector_size(8)));
    static float of(Whole v) { return v[0] + v[1]; }
};
template <>
struct LaneSum<double, 16> {
    typedef double Whole __attribute__((vector_size(16)));
    static double of(Whole v) { return v[0] + v[1]; }
};

template <class A>
inline A sum_lanes(Vec<A> v) {
    return LaneSum<A, SPARSEKERN_VECTOR_BYTES>::of(v);
}

// Adds the sum of the lanes of each of four vectors to four elements in a row: shared shuffles, where four
// separate sums would take more of them than a short dot product takes multiplications.
template <class A, int Bytes>
struct FourSums {
    typedef A Whole __attribute__((vector_size(Bytes)));
    typedef A Half __attribute__((vector_size(Bytes / 2)));

    static void add(Whole v, A* to) {
        Half halves[2];
        std::memcpy(halves, &v, sizeof(v));
        FourSums<A, Bytes / 2>::add(halves[0] + halves[1], to);
    }
};
template <class A>
struct FourSums<A, 4 * static_cast<int>(sizeof(A))> {
    typedef A Four __attribute__((vector_size(4 * sizeof(A))));

    static void add(Four v, A* to) {
        Four old;
        std::memcpy(&old, to, sizeof(old));
        old += v;
        std::memcpy(to, &old, sizeof(old));
    }
};

template <class A>
inline void add_four_sums(const Vec<A> (&v)[4], A* to) {
    if constexpr (kLanes<A> == 2) {
        store<A>(to, load<A>(to) + (interleave_low(v[0], v[1]) + interleave_high(v[0], v[1])));
        store<A>(to + 2, load<A>(to + 2) + (interleave_low(v[2], v[3]) + interleave_high(v[2], v[3])));
    } else {
        const Vec<A> even = interleave_low(v[0], v[2]) + interleave_high(v[0], v[2]);
        const Vec<A> odd = interleave_low(v[1], v[3]) + interleave_high(v[1], v[3]);
        FourSums<A, SPARSEKERN_VECTOR_BYTES>::add(interleave_low(even, odd) + interleave_high(even, odd), to);
    }
}

inline FloatVec from_bfloat16(HalfWordVec halves) {
    const WordVec words = __builtin_convertvector(halves, WordVec) << 16;
    FloatVec v;
    std::memcpy(&v, &words, sizeof(v));
    return v;
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline HalfWordVec to_bfloat16(FloatVec v) {
    WordVec words;
    std::memcpy(&words, &v, sizeof(words));
    const WordVec rounded = (words + 0x7FFFu + ((words >> 16) & 1u)) >> 16;
    const WordVec is_nan = (words & 0x7FFFFFFFu) > 0x7F800000u;
    const WordVec result = (is_nan & 0x7FC0u) | (~is_nan & rounded);
    return __builtin_convertvector(result, HalfWordVec);
}

}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
