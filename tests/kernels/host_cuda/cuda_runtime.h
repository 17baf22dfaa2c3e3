// Enough of CUDA to run a kernel's code on the host, one thread to a block. A test puts this folder first on
// the include path.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__ static
#define __device__ static
#define __host__
#define __shared__ static
#define __restrict__

struct dim3 {
    dim3(unsigned x_ = 1) : x(x_) {}
    unsigned x;
};
static dim3 threadIdx(0), blockIdx(0), blockDim(1), gridDim(1);

static inline void __syncthreads() {}
static inline int __popcll(unsigned long long word) { return __builtin_popcountll(word); }

enum cudaError_t { cudaSuccess = 0 };
enum cudaMemoryType { cudaMemoryTypeHost = 1, cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
};
struct CUstream_st;

// Nothing can be launched on a host, so every pointer counts as the host's and a launcher stops there.
static inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
    *attributes = {cudaMemoryTypeHost, 0};
    return cudaSuccess;
}
static inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static inline cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, CUstream_st*) {
    return cudaSuccess;
}
