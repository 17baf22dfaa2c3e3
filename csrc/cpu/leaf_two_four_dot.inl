// The gradient of the values of a 2:4 weight for a few samples: lanes are values, so that no sum runs across
// lanes.

#include "leaf_two_four_pairs.inl"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Four elements in a row, in each four lanes.
#if SPARSEKERN_VECTOR_BYTES == 64
inline FloatVec repeat_four(const float* from) {
    return (FloatVec)_mm512_broadcast_f32x4(_mm_loadu_ps(from));
}
inline DoubleVec repeat_four(const double* from) {
    return (DoubleVec)_mm512_broadcast_f64x4(_mm256_loadu_pd(from));
}
#else
inline FloatVec repeat_four(const float* from) {
    return (FloatVec)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
}
inline DoubleVec repeat_four(const double* from) { return load<double>(from); }
#endif

template <class A>
inline void put_dots(Vec<A> dots, A* to, int64_t count) {
    count >= kLanes<A> ? store<A>(to, dots) : store_first(to, dots, count);
}

// Up to kDotRows rows from `row` on, at the columns of one step; `x` and `y` are those of the samples.
template <class A>
inline void dot_rows(const DotWork<A>& work, int64_t row, int64_t step, const A* x, const A* y) {
    const TwoFourRows<A>& block = work.block;
    const int64_t columns = at_most(block.columns - step * kStep<A>, kStep<A>);
    const auto metadata = [&](int64_t i) {
        return block.metadata + at_most(row + i, block.rows - 1) * block.metadata_stride +
               step * kStepBytes<A>;
    };
    PickIndex<A> index[kDotPairs];
#pragma GCC unroll 4
    for (int p = 0; p < kDotPairs; ++p) {
        index[p] = pick_index<A>(metadata(2 * p), metadata(2 * p + 1), (columns + 7) / 8);
    }
    EvenOdd<Vec<A>> sum[kDotPairs] = {};
    for (int64_t m = 0; m < work.samples; ++m, x += kStep<A>, y += 2 * kDotRows) {
        const Vec<A> even = load<A>(x), odd = load<A>(x + kLanes<A>);
#pragma GCC unroll 4
        for (int p = 0; p < kDotPairs; ++p) {
            const Vec<A> rows = repeat_four(y + 4 * p);
            sum[p].even += rows * pick(even, index[p].even);
            sum[p].odd += rows * pick(odd, index[p].odd);
        }
    }
    A* const out = work.out + row * work.pitch + step * kLanes<A>;
#pragma GCC unroll 4
    for (int p = 0; p < kDotPairs; ++p) {
        const EvenOdd<Vec<A>> two = swap_pairs(sum[p].even, sum[p].odd);
        A* const to = out + 2 * p * work.pitch;
        if (row + 2 * p < block.rows) put_dots<A>(two.even, to, columns / 2);
        if (row + 2 * p + 1 < block.rows) put_dots<A>(two.odd, to + work.pitch, columns / 2);
    }
}

template <class A>
void dot_block(const DotWork<A>& given) {
    const DotWork<A> work = given;
    const A* x = work.x;
    for (int64_t step = 0; step * kStep<A> < work.block.columns; ++step, x += work.samples * kStep<A>) {
        const A* y = work.y;
        for (int64_t row = 0; row < work.block.rows; row += kDotRows, y += work.samples * 2 * kDotRows) {
            dot_rows(work, row, step, x, y);
        }
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
