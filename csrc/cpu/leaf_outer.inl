// Dense products: sums of outer products, a block of them in registers.

#include "kernel_table.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Sums of as many rows as the registers hold beside three vectors of columns and one row's element.
constexpr int kOuterVectors = 3;
constexpr int kOuterRows = SPARSEKERN_VECTOR_BYTES == 64 ? 8 : 4;

template <class A>
void outer(const OuterWork<A>& given, bool fresh) {
    constexpr int64_t lanes = kLanes<A>;
    const OuterWork<A> work = given;
    const A* y = work.y;
    const A* x = work.x;
    Vec<A> sum[kOuterRows][kOuterVectors] = {};
    for (int64_t m = 0; m < work.samples; ++m, y += kOuterRows, x += kOuterVectors * lanes) {
        Vec<A> columns[kOuterVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kOuterVectors; ++j) columns[j] = load<A>(x + j * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < kOuterRows; ++r) {
            const Vec<A> row = broadcast<A>(y[r]);
#pragma GCC unroll 8
            for (int j = 0; j < kOuterVectors; ++j) sum[r][j] += row * columns[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kOuterRows; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < kOuterVectors; ++j) {
            A* const to = work.sums + r * work.pitch + j * lanes;
            store<A>(to, fresh ? sum[r][j] : load<A>(to) + sum[r][j]);
        }
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
