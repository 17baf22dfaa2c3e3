// Samples laid out as the kernels that pick features take them.

#pragma once

#include "leaf_panels.inl"
#include "two_four_kernels.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Columns whose values fill a vector, and the bytes of their metadata.
template <class A>
constexpr int64_t kStep = 2 * kLanes<A>;
template <class A>
constexpr int64_t kStepBytes = kStep<A> / 8;

inline int64_t at_most(int64_t a, int64_t most) { return a < most ? a : most; }

// Pairs of rows whose sums the registers hold at once.
constexpr int kDotPairs = SPARSEKERN_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int64_t kDotRows = 2 * kDotPairs;

// In each step, the columns of the even groups and then those of the odd (see leaf_two_four_pairs.inl).
template <class T>
void arrange(const Samples<const T>& given, AccumulateType<T>* to) {
    using A = AccumulateType<T>;
    constexpr int64_t lanes = kLanes<A>;
    const Samples<const T> from = given;
    for (int64_t m = 0; m < from.count; ++m) {
        const T* sample = from.data + m * from.sample_stride;
        A* out = to + m * kStep<A>;
        for (int64_t k = 0; k < from.features; k += kStep<A>, out += from.count * kStep<A>) {
            const int64_t columns = at_most(from.features - k, kStep<A>);
            A step[kStep<A>];
            if (from.feature_stride == 1 && columns == kStep<A>) {
                store<A>(step, load_as(sample + k));
                store<A>(step + lanes, load_as(sample + k + lanes));
            } else {
                for (int64_t i = 0; i < columns; ++i) step[i] = widen(sample[(k + i) * from.feature_stride]);
                for (int64_t i = columns; i < kStep<A>; ++i) step[i] = A(0);
            }
#pragma GCC unroll 8
            for (int64_t group = 0; group < kStep<A> / 4; ++group) {
                std::memcpy(out + group % 2 * lanes + group / 2 * 4, step + 4 * group, 4 * sizeof(A));
            }
        }
    }
}

template <class T>
void arrange_rows(const Samples<const T>& given, AccumulateType<T>* to) {
    const Samples<const T> from = given;
    for (int64_t r = 0; r < from.features; r += kDotRows) {
        const int64_t rows = at_most(from.features - r, kDotRows);
        for (int64_t m = 0; m < from.count; ++m, to += 2 * kDotRows) {
            const T* sample = from.data + m * from.sample_stride + r * from.feature_stride;
            AccumulateType<T> row[kDotRows] = {};
            if (from.feature_stride == 1 && rows == kDotRows) {
#pragma GCC unroll 8
                for (int64_t i = 0; i < kDotRows; ++i) row[i] = widen(sample[i]);
            } else {
                for (int64_t i = 0; i < rows; ++i) row[i] = widen(sample[i * from.feature_stride]);
            }
#pragma GCC unroll 8
            for (int64_t i = 0; i < kDotRows; ++i) to[2 * i] = to[2 * i + 1] = row[i];
        }
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
