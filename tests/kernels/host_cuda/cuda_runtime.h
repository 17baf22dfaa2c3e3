// Enough of CUDA to run a kernel's code on the host. A test puts this folder first on the include path.
//
// Blocks run one after another. A block's threads are threads of the host that meet at __syncthreads, as many
// as the test wants: with one, a kernel is a plain loop; with several, a missing barrier or atomic can show.
#pragma once

#include <pthread.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#define __global__ static
#define __device__
#define __host__
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)

struct dim3 {
    dim3(unsigned x_ = 1) : x(x_) {}
    unsigned x;
};
static thread_local dim3 threadIdx(0), blockIdx(0), blockDim(1), gridDim(1);
static pthread_barrier_t block_barrier;

// Runs body() for every thread of every block.
template <class Body>
static void run_blocks_of(unsigned blocks, unsigned threads, const Body& body) {
    pthread_barrier_init(&block_barrier, nullptr, threads);
    const auto run_thread = [&](unsigned thread) {
        threadIdx.x = thread;
        blockDim.x = threads;
        gridDim.x = blocks;
        for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
            body();
            pthread_barrier_wait(&block_barrier);
        }
    };
    std::vector<std::thread> others;
    for (unsigned thread = 1; thread < threads; ++thread) others.emplace_back(run_thread, thread);
    run_thread(0);
    for (std::thread& other : others) other.join();
    pthread_barrier_destroy(&block_barrier);
}

static inline void __syncthreads() {
    if (blockDim.x > 1) pthread_barrier_wait(&block_barrier);
}
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline int __popcll(unsigned long long word) { return __builtin_popcountll(word); }
static inline int __ffsll(long long word) { return __builtin_ffsll(word); }

// Byte i of the result is one of the eight of a and b; the i-th digit of the selector says which, and, from 8
// on, that only the byte's sign is taken.
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long bytes = a | static_cast<unsigned long long>(b) << 32;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned digit = selector >> 4 * i & 15u;
        const unsigned byte = static_cast<unsigned>(bytes >> 8 * (digit & 7u)) & 0xFFu;
        result |= (digit < 8 ? byte : byte >= 0x80u ? 0xFFu : 0u) << 8 * i;
    }
    return result;
}
static inline unsigned larger_halves(unsigned a, unsigned b) {
    const unsigned low = (a & 0xFFFFu) > (b & 0xFFFFu) ? a & 0xFFFFu : b & 0xFFFFu;
    return low | (a >> 16 > b >> 16 ? a >> 16 : b >> 16) << 16;
}
// max(a, b, c) and min(a + b, c), in both halves of the words.
static inline unsigned __vimax3_u16x2(unsigned a, unsigned b, unsigned c) {
    return larger_halves(larger_halves(a, b), c);
}
static inline unsigned __viaddmin_u16x2(unsigned a, unsigned b, unsigned c) {
    const unsigned sum = ((a + b) & 0xFFFFu) | ((a >> 16) + (b >> 16)) << 16;
    return ~larger_halves(~sum, ~c);
}

template <class T>
static inline T atomicAdd(T* to, T value) {
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
// As in CUDA, where an argument is converted to the type of one overload.
static inline unsigned long long atomicAdd(unsigned long long* to, unsigned value) {
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
static inline uint32_t atomicOr(uint32_t* to, uint32_t value) {
    return __atomic_fetch_or(to, value, __ATOMIC_RELAXED);
}

enum cudaError_t { cudaSuccess = 0 };
enum cudaMemoryType { cudaMemoryTypeHost = 1, cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
};
struct CUstream_st;

// Every pointer counts as the host's, where a launcher stops; or as a device's, and launches go to
// `host_launch`.
using HostLaunch = cudaError_t (*)(const void* kernel, dim3 blocks, dim3 threads, void** arguments);
static HostLaunch host_launch = nullptr;

static inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
    *attributes = {host_launch == nullptr ? cudaMemoryTypeHost : cudaMemoryTypeDevice, 0};
    return cudaSuccess;
}
static inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static inline cudaError_t cudaLaunchKernel(const void* kernel, dim3 blocks, dim3 threads, void** arguments,
                                           size_t, CUstream_st*) {
    return host_launch == nullptr ? cudaSuccess : host_launch(kernel, blocks, threads, arguments);
}
