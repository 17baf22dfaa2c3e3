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
void dot_list(const ListWork<A>& given, const int64_t* index, A* values_gradient) {
    constexpr int64_t lanes = kLanes<A>;
    const ListWork<A> work = given;
    for (int64_t r = 0; r < work.rows; ++r) {
        if (work.ptr[r] == work.ptr[r + 1]) continue;
        Vec<A> gradient[V];
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) gradient[j] = load<A>(work.y + r * work.y_stride + j * lanes);
        for (int64_t i = work.ptr[r]; i < work.ptr[r + 1]; ++i) {
            const A* feature = work.x + work.offset[i];
            Vec<A> sum = gradient[0] * load<A>(feature);
#pragma GCC unroll 8
            for (int j = 1; j < V; ++j) sum += gradient[j] * load<A>(feature + j * lanes);
            values_gradient[index[i]] += sum_lanes<A>(sum);
        }
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
