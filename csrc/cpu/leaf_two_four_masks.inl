// The best of the 90 masks of tiles, one tile for each lane: as select_tile has it, bit for bit.

#include "leaf_two_four_groups.inl"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Lane by lane a where it is larger than b, else b.
inline DoubleVec larger_of(DoubleVec a, DoubleVec b) {
#if SPARSEKERN_VECTOR_BYTES == 64
    return (DoubleVec)_mm512_maskz_max_pd(0xFF, (__m512d)a, (__m512d)b);
#elif SPARSEKERN_VECTOR_BYTES == 32
    return (DoubleVec)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
    return a > b ? a : b;
#endif
}

// The best mask so far, by its total.
struct BestMask {
    DoubleVec total;
    LongVec choice;

    void consider(DoubleVec other, LongVec other_choice) {
        choice = other > total ? other_choice : choice;
        total = larger_of(other, total);
    }
};

// The sums of a tile's rows by pair, of which those of rows 2 and 3 have been added up.
struct TileSums {
    DoubleVec first[kPairs];
    DoubleVec second[kPairs];
    DoubleVec bottom[kPairs * kPairs];
};

template <int kMask>
inline DoubleVec total_of(const TileSums& sums) {
    constexpr int top = TileMaskConstants<kMask>::kTop;
    return (sums.first[top / kPairs] + sums.second[top % kPairs]) +
           sums.bottom[TileMaskConstants<kMask>::kBottom];
}

// The best of the masks kFirst .. kFirst + sizeof...(kRest).
template <int kFirst, int... kRest>
inline __attribute__((always_inline)) BestMask best_of(const TileSums& sums, const TileChoice* choices,
                                                       std::integer_sequence<int, kRest...>) {
    BestMask best = {total_of<kFirst>(sums), LongVec{} + choices[kFirst]};
    (best.consider(total_of<kFirst + 1 + kRest>(sums), LongVec{} + choices[kFirst + 1 + kRest]), ...);
    return best;
}

// A run of masks is a chain of comparisons, each of which waits for the one before; runs do not wait.
constexpr int kRun = 15;
static_assert(kTileMaskCount % kRun == 0);

template <int... kRuns>
inline __attribute__((always_inline)) LongVec best_of_runs(const TileSums& sums,
                                                           std::integer_sequence<int, kRuns...>) {
    // Read from memory, where a vector of a choice costs nothing: as constants they would go through other
    // registers.
    const TileChoice* choices = kTileMasks.choice;
    asm("" : "+r"(choices));
    BestMask best = best_of<0>(sums, choices, std::make_integer_sequence<int, kRun - 1>());
    const auto take = [&](const BestMask& run) { best.consider(run.total, run.choice); };
    (take(best_of<(1 + kRuns) * kRun>(sums, choices, std::make_integer_sequence<int, kRun - 1>())), ...);
    return best.choice;
}

template <class Magnitude>
inline __attribute__((always_inline)) void add_pairs(const Magnitude& magnitude, int row,
                                                     DoubleVec (&pairs)[kPairs]) {
    const DoubleVec a = magnitude(row, 0), b = magnitude(row, 1);
    const DoubleVec c = magnitude(row, 2), d = magnitude(row, 3);
    pairs[0] = a + b;
    pairs[1] = a + c;
    pairs[2] = a + d;
    pairs[3] = b + c;
    pairs[4] = b + d;
    pairs[5] = c + d;
}

// `magnitude(row, column)` gives those of all tiles.
template <class Magnitude>
inline __attribute__((always_inline)) LongVec select_tiles(const Magnitude& magnitude) {
    TileSums sums;
    DoubleVec third[kPairs], fourth[kPairs];
    add_pairs(magnitude, 2, third);
    add_pairs(magnitude, 3, fourth);
#pragma GCC unroll 36
    for (int i = 0; i < kPairs * kPairs; ++i) sums.bottom[i] = third[i / kPairs] + fourth[i % kPairs];
    add_pairs(magnitude, 0, sums.first);
    add_pairs(magnitude, 1, sums.second);
    return best_of_runs(sums, std::make_integer_sequence<int, kTileMaskCount / kRun - 1>());
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
