// Rows of a 2:4 weight against a panel, and columns of one as lists: each value is broadcast and multiplied
// with up to kMaxVectors vectors of samples.

#include "leaf_panels.inl"
#include "two_four_kernels.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Rows whose values are asked for ahead of time: a block's rows are far apart in memory.
constexpr int64_t kRowsAhead = 4;

// Four values in a row, each in all lanes. Where a broadcast from memory takes as long as a whole vector's
// load does, one load serves the four.
#if SPARSEKERN_VECTOR_BYTES == 64
inline void broadcast_four(__m128 from, FloatVec (&to)[4]) {
    const __m512 four = _mm512_broadcast_f32x4(from);
    to[0] = (FloatVec)_mm512_permute_ps(four, 0x00);
    to[1] = (FloatVec)_mm512_permute_ps(four, 0x55);
    to[2] = (FloatVec)_mm512_permute_ps(four, 0xAA);
    to[3] = (FloatVec)_mm512_permute_ps(four, 0xFF);
}
inline void broadcast_four(const float* from, FloatVec (&to)[4]) { broadcast_four(_mm_loadu_ps(from), to); }
inline void broadcast_four(const double* from, DoubleVec (&to)[4]) {
    const __m512d four = _mm512_broadcast_f64x4(_mm256_loadu_pd(from));
    to[0] = (DoubleVec)_mm512_permutex_pd(four, 0x00);
    to[1] = (DoubleVec)_mm512_permutex_pd(four, 0x55);
    to[2] = (DoubleVec)_mm512_permutex_pd(four, 0xAA);
    to[3] = (DoubleVec)_mm512_permutex_pd(four, 0xFF);
}
inline void broadcast_four(const BFloat16* from, FloatVec (&to)[4]) {
    const __m128i halves = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    broadcast_four(_mm_castsi128_ps(_mm_slli_epi32(halves, 16)), to);
}
#else
template <class T, class V>
inline void broadcast_four(const T* from, V (&to)[4]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) to[i] = widen(from[i]) - V{};
}
#endif

// The sums of a panel's vectors, several of each where there are few: a single one would wait for itself at
// each addition.
template <class A, int V>
struct PanelSums {
    static constexpr int kChains = V == 1 ? 4 : V <= 3 ? 2 : 1;

    Vec<A> sum[kChains][V];

    explicit PanelSums(Vec<A> start) {
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) {
            sum[0][j] = start;
#pragma GCC unroll 4
            for (int c = 1; c < kChains; ++c) sum[c][j] = Vec<A>{};
        }
    }

    template <int I>
    void add(Vec<A> value, const A* feature) {
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) sum[I % kChains][j] += value * load<A>(feature + j * kLanes<A>);
    }

    void finish(A* y, bool fresh) const {
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) {
            Vec<A> total = sum[0][j];
            if constexpr (kChains == 2) total += sum[1][j];
            if constexpr (kChains == 4) total = (total + sum[1][j]) + (sum[2][j] + sum[3][j]);
            store<A>(y + j * kLanes<A>, fresh ? total : total + load<A>(y + j * kLanes<A>));
        }
    }
};

// Asks for the block's part of a row, or behind its last row for the next block's part of its first ones. GCC
// takes calls of a function that does nothing else for superfluous, unless it is inlined first.
template <class T>
__attribute__((always_inline)) inline void prefetch_row(const TwoFourRows<T>& block, int64_t row) {
    const bool next = row >= block.rows;
    const int64_t place = next ? row - block.rows : row;
    const T* value = block.values + place * block.value_stride + (next ? block.columns / 2 : 0);
    const char* const bytes = reinterpret_cast<const char*>(value);
    for (int64_t at = 0; at < block.columns / 2 * static_cast<int64_t>(sizeof(T)); at += 64) {
        __builtin_prefetch(bytes + at, 0, 2);
    }
    __builtin_prefetch(block.metadata + place * block.metadata_stride + (next ? block.columns / 8 : 0), 0, 2);
}

// Asks for a row's share of what all rows of the block together read next.
template <class A>
__attribute__((always_inline)) inline void prefetch_share(const A* next, int64_t count, int64_t row,
                                                          int64_t rows) {
    const int64_t lines = count * static_cast<int64_t>(sizeof(A)) / 64;
    const int64_t share = (lines + rows - 1) / rows;
    const char* const at = reinterpret_cast<const char*>(next) + row * share * 64;
    for (int64_t i = 0; i < share; ++i) __builtin_prefetch(at + 64 * i, 0, 2);
}

template <class T, int V>
void accumulate_panel(const TwoFourPanelWork<T>& given, bool fresh, const AccumulateType<T>* start) {
    using A = AccumulateType<T>;
    constexpr int64_t width = V * kLanes<A>;
    const TwoFourRows<T> block = given.block;
    for (int64_t r = 0; r < block.rows; ++r) {
        prefetch_row(block, r + kRowsAhead);
        prefetch_share(given.x + block.columns * width, block.columns * width, r, block.rows);
        PanelSums<A, V> sums(broadcast<A>(fresh && start != nullptr ? start[r] : A(0)));
        const T* value = block.values + r * block.value_stride;
        const unsigned char* metadata = block.metadata + r * block.metadata_stride;
        const A* x = given.x;
        for (int64_t i = 0; i < block.columns / 8; ++i, value += 4, x += 8 * width) {
            const int64_t columns = metadata[i];
            Vec<A> four[4];
            broadcast_four(value, four);
            sums.template add<0>(four[0], x + (columns & 3) * width);
            sums.template add<1>(four[1], x + (columns >> 2 & 3) * width);
            sums.template add<2>(four[2], x + (4 + (columns >> 4 & 3)) * width);
            sums.template add<3>(four[3], x + (4 + (columns >> 6)) * width);
        }
        if (block.columns % 8 != 0) {
            const int64_t columns = metadata[block.columns / 8];
            sums.template add<0>(broadcast<A>(widen(value[0])), x + (columns & 3) * width);
            sums.template add<1>(broadcast<A>(widen(value[1])), x + (columns >> 2 & 3) * width);
        }
        sums.finish(given.y + r * width, fresh);
    }
}

template <class A, int V>
void accumulate_lists(const ListsWork<A>& given, bool fresh) {
    constexpr int64_t width = V * kLanes<A>;
    const ListsWork<A> work = given;
    for (int64_t c = 0; c < work.columns; ++c) {
        const int64_t count = work.lists.counts[c];
        const A* value = work.lists.values + c * work.lists.capacity;
        const uint16_t* row = work.lists.rows + c * work.lists.capacity;
        PanelSums<A, V> sums(Vec<A>{});
        int64_t i = 0;
        for (; i + 4 <= count; i += 4) {
            Vec<A> four[4];
            broadcast_four(value + i, four);
            sums.template add<0>(four[0], work.x + row[i] * width);
            sums.template add<1>(four[1], work.x + row[i + 1] * width);
            sums.template add<2>(four[2], work.x + row[i + 2] * width);
            sums.template add<3>(four[3], work.x + row[i + 3] * width);
        }
        for (; i < count; ++i) sums.template add<0>(broadcast<A>(value[i]), work.x + row[i] * width);
        sums.finish(work.y + c * width, fresh);
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
