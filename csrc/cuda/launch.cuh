// Checks and device selection that GPU launchers share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

#include "sparsekern/cuda_status.h"
#include "sparsekern/pattern.h"

namespace sparsekern::cuda {

inline Status from_runtime(cudaError_t error) { return static_cast<Status>(error); }

// Whether sizes can belong to a pattern at all: every index that a kernel derives from them is in range.
inline bool consistent(const PatternSizes& s) {
    const bool tile_size = s.tile_size == 8 || s.tile_size == 16 || s.tile_size == 32 || s.tile_size == 64;
    if (!tile_size || s.rows < 1 || s.cols < 1) return false;
    return s.tile_rows == (s.rows + s.tile_size - 1) / s.tile_size &&
           s.tile_cols == (s.cols + s.tile_size - 1) / s.tile_size && s.tiles >= 0 &&
           s.tiles <= s.tile_rows * s.tile_cols && s.nnz >= (s.complete() ? 0 : s.tiles) &&
           s.nnz <= s.tiles * s.tile_size * s.tile_size;
}

inline bool aligned(const void* pointer, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

inline bool overlap(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
    const auto first = reinterpret_cast<uintptr_t>(a);
    const auto second = reinterpret_cast<uintptr_t>(b);
    return first < second + static_cast<uintptr_t>(b_bytes) &&
           second < first + static_cast<uintptr_t>(a_bytes);
}

// Finds the one device that owns all the pointers; null ones are passed over.
inline Status device_of(std::initializer_list<const void*> pointers, int* device) {
    *device = -1;
    for (const void* pointer : pointers) {
        if (pointer == nullptr) continue;
        cudaPointerAttributes attributes;
        const cudaError_t error = cudaPointerGetAttributes(&attributes, pointer);
        if (error != cudaSuccess) return from_runtime(error);
        if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
            return Status::not_device_memory;
        }
        if (*device >= 0 && attributes.device != *device) return Status::different_devices;
        *device = attributes.device;
    }
    return Status::ok;
}

// Makes a device current for a scope. The caller's framework has a CUDA runtime of its own, and which device
// is current there is not known here.
class DeviceScope {
public:
    explicit DeviceScope(int device) {
        error_ = cudaGetDevice(&previous_);
        if (error_ == cudaSuccess && previous_ != device) {
            error_ = cudaSetDevice(device);
            changed_ = error_ == cudaSuccess;
        }
    }
    ~DeviceScope() {
        if (changed_) cudaSetDevice(previous_);
    }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

    cudaError_t error() const { return error_; }

private:
    int previous_ = 0;
    bool changed_ = false;
    cudaError_t error_ = cudaSuccess;
};

}  // namespace sparsekern::cuda
