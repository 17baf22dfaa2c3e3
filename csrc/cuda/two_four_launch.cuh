// Launching one kernel on many 2:4 weights: which block has which part of which weight. A weight is a struct
// with `rows` and `columns`.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <limits>

#include "launch.cuh"
#include "two_four_blocks.cuh"

namespace sparsekern::cuda {

// A weight in a launch: its first block, and how many blocks lie side by side.
template <class Weight>
struct Part {
    Weight weight;
    int first_block;
    int blocks_across;
};

// The weights of one launch, passed by value, and what holds for all of them.
constexpr int kParts = 32;
template <class Weight, class Option>
struct Parts {
    Part<Weight> part[kParts];
    int count;
    Option option;
};

// The weight that this block of threads has a part of, and where.
template <class Weight, class Option>
__device__ inline const Weight& weight_of_block(const Parts<Weight, Option>& parts, Block* block) {
    const int here = static_cast<int>(blockIdx.x);
    int p = 0;
    while (p + 1 < parts.count && here >= parts.part[p + 1].first_block) ++p;
    const Part<Weight>& part = parts.part[p];
    const int number = here - part.first_block;
    block->row = static_cast<int64_t>(number / part.blocks_across) * kBlockRows;
    block->column = static_cast<int64_t>(number % part.blocks_across) * kBlockColumns;
    return part.weight;
}

template <class Weight>
int64_t blocks_across(const Weight& weight) {
    return (weight.columns + kBlockColumns - 1) / kBlockColumns;
}
template <class Weight>
int64_t blocks_of(const Weight& weight) {
    return (weight.rows + kBlockRows - 1) / kBlockRows * blocks_across(weight);
}

// Whether as many weights of this size as a launch takes can be numbered.
template <class Weight>
bool can_be_numbered(const Weight& weight) {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    return weight.rows >= 0 && weight.columns >= 0 && weight.rows <= kMost && weight.columns <= kMost &&
           blocks_of(weight) <= kMost / kParts;
}

// Finds the device of all weights that are not empty; -1 where all are.
template <class Weight, class Pointers>
Status device_of_weights(const Weight* weights, int64_t count, Pointers pointers, int* device) {
    *device = -1;
    for (int64_t i = 0; i < count; ++i) {
        if (weights[i].rows * weights[i].columns == 0) continue;
        int found = -1;
        const Status status = pointers(weights[i], &found);
        if (status != Status::ok) return status;
        if (*device >= 0 && found != *device) return Status::different_devices;
        *device = found;
    }
    return Status::ok;
}

// Queues a kernel on those of the weights that are `wanted`, and not empty.
template <class Weight, class Option, class Wanted>
Status launch_on(const Weight* weights, int64_t count, Wanted wanted, const void* kernel, Option option,
                 CUstream_st* stream) {
    static_assert(sizeof(Parts<Weight, Option>) <= 4000, "kernel arguments are limited");
    for (int64_t next = 0; next < count;) {
        Parts<Weight, Option> parts{};
        parts.option = option;
        int64_t blocks = 0;
        for (; next < count && parts.count < kParts; ++next) {
            const Weight& weight = weights[next];
            if (!wanted(weight) || weight.rows * weight.columns == 0) continue;
            parts.part[parts.count++] = {weight, static_cast<int>(blocks),
                                         static_cast<int>(blocks_across(weight))};
            blocks += blocks_of(weight);
        }
        if (blocks == 0) continue;
        void* arguments[] = {&parts};
        const cudaError_t error = cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)),
                                                   dim3(kThreads), arguments, 0, stream);
        if (error != cudaSuccess) return from_runtime(error);
    }
    return Status::ok;
}

}  // namespace sparsekern::cuda
