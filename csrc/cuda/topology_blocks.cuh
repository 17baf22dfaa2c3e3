// What the threads of a block do together in update_topology. Written for any number of threads.
#pragma once

#include "topology_table.cuh"

namespace sparsekern::cuda {

constexpr int kMostThreads = 1024;

// The sum of `value` over the threads before this one; every thread of the block calls it. Of `total`, if
// given, the sum over all.
__device__ inline int64_t block_scan(int64_t value, int64_t* total = nullptr) {
    __shared__ int64_t sums[kMostThreads];
    const int me = threadIdx.x, threads = blockDim.x;
    sums[me] = value;
    __syncthreads();
    for (int width = 1; width < threads; width *= 2) {
        const int64_t before = me >= width ? sums[me - width] : 0;
        __syncthreads();
        sums[me] += before;
        __syncthreads();
    }
    const int64_t inclusive = sums[me];
    if (total != nullptr) *total = sums[threads - 1];
    __syncthreads();
    return inclusive - value;
}

// Room for `count` items of each thread at the end of the layer's list: where this thread's begin. Every
// thread of the block calls it. The list may be full: the caller checks the capacity.
__device__ inline int64_t reserve(LayerState* state, int count) {
    __shared__ unsigned long long base;
    __shared__ unsigned taken;
    if (threadIdx.x == 0) taken = 0;
    __syncthreads();
    const unsigned mine = count > 0 ? atomicAdd(&taken, static_cast<unsigned>(count)) : 0;
    __syncthreads();
    if (threadIdx.x == 0) base = taken == 0 ? 0 : atomicAdd(&state->list_size, taken);
    __syncthreads();
    const int64_t at = static_cast<int64_t>(base) + mine;
    __syncthreads();
    return at;
}

// Narrows a selection by a histogram that the whole block sees. Every thread of the block calls it.
template <class Count>
__device__ inline void block_narrow(Selection* selection, const Count* histogram) {
    const int bins = (kBins + blockDim.x - 1) / blockDim.x;
    int end = kBins - static_cast<int>(threadIdx.x) * bins;
    if (end < 0) end = 0;
    const int begin = end > bins ? end - bins : 0;
    int64_t sum = 0;
    for (int bin = begin; bin < end; ++bin) sum += static_cast<int64_t>(histogram[bin]);
    const int64_t wanted = selection->wanted;
    const int64_t above = block_scan(sum);
    Bin found;
    if (above < wanted && find_bin(histogram, begin, end, above, wanted, &found)) narrow(selection, found);
    __syncthreads();
}

// The histogram of one block, and what becomes of it.
class BlockHistogram {
public:
    __device__ static unsigned* clear() {
        unsigned* const bins = shared();
        for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) bins[bin] = 0;
        __syncthreads();
        return bins;
    }

    // Adds the block's histogram to the layer's. The last of `blocks` narrows the selection and leaves the
    // layer's histogram empty for the next digit.
    __device__ static void finish(const Table& table, int layer, Selection* selection, int64_t blocks) {
        __shared__ bool is_last;
        const unsigned* const bins = shared();
        unsigned long long* const total = table.histograms + static_cast<int64_t>(layer) * kBins;
        LayerState* const state = table.states + layer;
        __syncthreads();
        for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) {
            if (bins[bin] != 0) atomicAdd(total + bin, static_cast<unsigned long long>(bins[bin]));
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) is_last = atomicAdd(&state->blocks_done, 1u) == blocks - 1;
        __syncthreads();
        if (!is_last) return;
        __threadfence();
        block_narrow(selection, static_cast<const volatile unsigned long long*>(total));
        for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) total[bin] = 0;
        if (threadIdx.x == 0) state->blocks_done = 0;
    }

private:
    __device__ static unsigned* shared() {
        __shared__ unsigned bins[kBins];
        return bins;
    }
};

}  // namespace sparsekern::cuda
