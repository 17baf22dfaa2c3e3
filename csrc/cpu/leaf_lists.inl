// Leaf kernels for rows given as lists of offsets.

#include "kernel_table.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

template <class A, int V>
void accumulate_list(const ListWork<A>& given, const A* values, bool fresh, const A* start) {
    constexpr int64_t lanes = kLanes<A>;
    const ListWork<A> work = given;
    for (int64_t r = 0; r < work.rows; ++r) {
        int64_t i = work.ptr[r];
        const int64_t end = work.ptr[r + 1];
        if (!fresh && i == end) continue;
        A* y = work.y + r * work.y_stride;
        Vec<A> sum[V];
        const Vec<A> initial = broadcast<A>(fresh && start != nullptr ? start[r] : A(0));
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) sum[j] = initial;
        for (; i < end; ++i) {
            const A* feature = work.x + work.offset[i];
            const Vec<A> weight = broadcast<A>(values[i]);
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) sum[j] += weight * load<A>(feature + j * lanes);
        }
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) store<A>(y + j * lanes, fresh ? sum[j] : sum[j] + load<A>(y + j * lanes));
    }
}

template <class A, int V>
inline Vec<A> products(const Vec<A> (&gradient)[V], const A* feature) {
    Vec<A> sum = gradient[0] * load<A>(feature);
#pragma GCC unroll 8
    for (int j = 1; j < V; ++j) sum += gradient[j] * load<A>(feature + j * kLanes<A>);
    return sum;
}

template <class A, int V>
void dot_list(const ListWork<A>& given, A* dots) {
    constexpr int64_t lanes = kLanes<A>;
    const ListWork<A> work = given;
    for (int64_t r = 0; r < work.rows; ++r) {
        int64_t i = work.ptr[r];
        const int64_t end = work.ptr[r + 1];
        if (i == end) continue;
        Vec<A> gradient[V];
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) gradient[j] = load<A>(work.y + r * work.y_stride + j * lanes);
        for (; i + 4 <= end; i += 4) {
            Vec<A> sum[4];
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) sum[k] = products<A, V>(gradient, work.x + work.offset[i + k]);
            add_four_sums<A>(sum, dots + i);
        }
        for (; i < end; ++i) {
            dots[i] += sum_lanes<A>(products<A, V>(gradient, work.x + work.offset[i]));
        }
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
