// How the values of 2:4 rows meet the columns that they multiply: rows in twos, by permutations that stay
// within four lanes.
//
// A group's two values are a pair. A vector of values holds the pairs of neighbouring groups; of two rows it
// makes one vector with the pairs of their even groups and one with those of their odd groups, row a's pair
// of a group beside row b's. So the four lanes of a group pick among the four columns of that group, which
// are four lanes of a vector of features: those of the even groups, or of the odd.

#pragma once

#include "leaf_two_four_arrange.inl"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

template <class Vector>
struct EvenOdd {
    Vector even;
    Vector odd;
};

// From two rows' vectors to the even and the odd groups' pairs of both, or back. A pair of floats is a
// double.
inline EvenOdd<FloatVec> swap_pairs(FloatVec a, FloatVec b) {
    using IndexVec [[maybe_unused]] = LongVec;
    const DoubleVec of_a = (DoubleVec)a, of_b = (DoubleVec)b;
#if SPARSEKERN_VECTOR_BYTES == 64
    return {(FloatVec)SPARSEKERN_SHUFFLE(of_a, of_b, 0, 8, 2, 10, 4, 12, 6, 14),
            (FloatVec)SPARSEKERN_SHUFFLE(of_a, of_b, 1, 9, 3, 11, 5, 13, 7, 15)};
#else
    return {(FloatVec)SPARSEKERN_SHUFFLE(of_a, of_b, 0, 4, 2, 6),
            (FloatVec)SPARSEKERN_SHUFFLE(of_a, of_b, 1, 5, 3, 7)};
#endif
}
inline EvenOdd<DoubleVec> swap_pairs(DoubleVec a, DoubleVec b) {
    using IndexVec [[maybe_unused]] = LongVec;
#if SPARSEKERN_VECTOR_BYTES == 64
    return {SPARSEKERN_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13),
            SPARSEKERN_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15)};
#else
    return {SPARSEKERN_SHUFFLE(a, b, 0, 1, 4, 5), SPARSEKERN_SHUFFLE(a, b, 2, 3, 6, 7)};
#endif
}

template <class A>
using LaneIndex = typename VecOf<A>::index;
template <class A>
using PickIndex = EvenOdd<LaneIndex<A>>;

// Where the 2-bit column of each lane of the even groups begins in its row's metadata, and the lanes of row
// b.
template <class A>
struct LanePlaces {
    using Word = decltype(LaneIndex<A>{}[0] + 0);

    alignas(kBytes) Word shift[kLanes<A>] = {};
    alignas(kBytes) Word second[kLanes<A>] = {};

    constexpr LanePlaces() {
        for (int64_t lane = 0; lane < kLanes<A>; ++lane) {
            shift[lane] = static_cast<Word>(lane / 4 * 8 + lane % 2 * 2);
            second[lane] = lane % 4 < 2 ? Word{0} : ~Word{0};
        }
    }
};
template <class A>
constexpr LanePlaces<A> kLanePlaces;

template <class A>
inline LaneIndex<A> load_index(const typename LanePlaces<A>::Word* from) {
    LaneIndex<A> index;
    std::memcpy(&index, from, sizeof(index));
    return index;
}

// From each lane's column, with more bits above it, what picks it; and the features that the lanes pick.
#if SPARSEKERN_VECTOR_BYTES == 64
// This instruction looks at the lowest two bits alone.
inline WordVec picking(WordVec columns) { return columns; }
inline FloatVec pick(FloatVec x, WordVec index) {
    return (FloatVec)_mm512_permutevar_ps((__m512)x, (__m512i)index);
}
inline LongVec picking(LongVec columns) { return (columns & 3) + LongVec{0, 0, 0, 0, 4, 4, 4, 4}; }
inline DoubleVec pick(DoubleVec x, LongVec index) {
    return (DoubleVec)_mm512_permutexvar_pd((__m512i)index, (__m512d)x);
}
#else
inline WordVec picking(WordVec columns) { return columns; }
inline FloatVec pick(FloatVec x, WordVec index) {
    return (FloatVec)_mm256_permutevar_ps((__m256)x, (__m256i)index);
}
// The two 32-bit halves of each lane's column.
inline LongVec picking(LongVec columns) {
    const LongVec first = (columns & 3) * 2;
    return first | (first + 1) << 32;
}
inline DoubleVec pick(DoubleVec x, LongVec index) {
    const __m256 halves = _mm256_castpd_ps((__m256d)x);
    return (DoubleVec)_mm256_castps_pd(_mm256_permutevar8x32_ps(halves, (__m256i)index));
}
#endif

// What picks the features of a step for two rows, from `bytes` bytes of their metadata, kStepBytes or fewer.
template <class A>
inline PickIndex<A> pick_index(const unsigned char* a, const unsigned char* b, int64_t bytes) {
    uint32_t word_a = 0, word_b = 0;
    std::memcpy(&word_a, a, static_cast<size_t>(bytes));
    std::memcpy(&word_b, b, static_cast<size_t>(bytes));
    const LaneIndex<A> second = load_index<A>(kLanePlaces<A>.second);
    const LaneIndex<A> both = (~second & (LaneIndex<A>{} + word_a)) | (second & (LaneIndex<A>{} + word_b));
    const LaneIndex<A> shift = load_index<A>(kLanePlaces<A>.shift);
    return {picking(both >> shift), picking(both >> (shift + 4))};
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
