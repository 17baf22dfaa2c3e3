// transpose_two_four: a thread puts the kept weights of an area of 8 x 8 in their places, in registers, and
// keeps two of each of its columns.
#include <cuda_runtime.h>

#include <cstdint>

#include "sparsekern/transpose_two_four_cuda.h"
#include "two_four_blocks.cuh"
#include "two_four_launch.cuh"
#include "two_four_metadata.cuh"

namespace sparsekern::cuda {
namespace {

// There is nothing to say of all weights.
struct NoOption {};
using TransposeParts = Parts<PackedWeight, NoOption>;

// The kept pairs of two groups, of which some may be missing; a pair is aligned to itself, and both where
// `wide`.
template <int kBytes>
__device__ inline Four<kBytes> load_pairs(const char* from, int count, bool wide) {
    if (wide) return load_four<kBytes>(from, count > 0);
    Four<kBytes> pairs = {};
    if constexpr (kBytes == 1) {
        if (count > 0) pairs.word[0] = *reinterpret_cast<const uint16_t*>(from);
        if (count > 1) pairs.word[0] |= uint32_t{*reinterpret_cast<const uint16_t*>(from + 2)} << 16;
    } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (i >= count) continue;
            const auto pair = *reinterpret_cast<const Words<kBytes / 2>*>(from + 2 * kBytes * i);
#pragma unroll
            for (int j = 0; j < kBytes / 2; ++j) pairs.word[kBytes / 2 * i + j] = pair.word[j];
        }
    }
    return pairs;
}

// Element i of the kept pairs.
template <int kBytes>
__device__ inline uint32_t element(const Four<kBytes>& four, int i) {
    constexpr uint32_t kElement = 0xFFFFFFFFu >> (32 - 8 * kBytes);
    return four.word[i * kBytes / 4] >> 8 * (i * kBytes % 4) & kElement;
}

// Four elements of a row, of which two are given and named by a nibble.
template <int kBytes>
__device__ inline Four<kBytes> place_pair(uint32_t first, uint32_t second, uint32_t nibble) {
    Four<kBytes> four = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t value = (nibble & 3u) == static_cast<uint32_t>(i) ? first
                               : nibble >> 2 == static_cast<uint32_t>(i) ? second
                                                                         : 0;
        four.word[i * kBytes / 4] |= value << 8 * (i * kBytes % 4);
    }
    return four;
}

// The nibbles, in bytes, of the columns of a tile, from those of its rows.
__device__ inline uint32_t column_nibbles(const uint32_t (&nibbles)[4]) {
    uint32_t kept = 0;
#pragma unroll
    for (int row = 0; row < 4; ++row) {
        // Bit 4 * column + row.
        kept |= (1u << 4 * (nibbles[row] & 3u) | 1u << 4 * (nibbles[row] >> 2)) << row;
    }
    return nibbles_in_bytes(nibbles_of_bits(kept));
}

template <int kBytes>
__global__ void __launch_bounds__(kThreads, 5) transpose_kernel(TransposeParts parts) {
    __shared__ BlockMetadata shared;
    Block block;
    const PackedWeight& weight = weight_of_block(parts, &block);
    const Area area(weight.rows, weight.columns, block);
    const bool wide = weight.columns % kThreadSide == 0;
    const int64_t pitch = weight.columns * kBytes / 2, byte_pitch = metadata_bytes(weight.columns);
    const char* const from =
        static_cast<const char*>(weight.values) + area.row * pitch + area.column * kBytes / 2;
    const uint8_t* const bytes =
        static_cast<const uint8_t*>(weight.metadata) + area.row * byte_pitch + area.column / 8;

    Four<kBytes> kept_t[kThreadSide];
    uint32_t metadata_t[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Four<kBytes> sides[2][4];
        uint32_t nibbles[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = 4 * half + i;
            const int groups = row < area.rows ? area.groups : 0;
            const Four<kBytes> pairs = load_pairs<kBytes>(from + row * pitch, groups, wide);
            const uint32_t byte = groups > 0 ? bytes[row * byte_pitch] : 0;
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                nibbles[side][i] = byte >> 4 * side & 15u;
                sides[side][i] = place_pair<kBytes>(element<kBytes>(pairs, 2 * side),
                                                    element<kBytes>(pairs, 2 * side + 1), nibbles[side][i]);
            }
        }
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            Four<kBytes> columns[4];
            transpose(sides[side], columns);
            const uint32_t of_columns = column_nibbles(nibbles[side]);
            keep_columns<kBytes>(columns, of_columns, half == 0, kept_t + 4 * side);
            if (4 * half < area.rows) metadata_t[side] |= of_columns << 4 * half;
        }
    }
    store_columns<kBytes>(area, weight.rows, kept_t, weight.values_t);
    const auto column = static_cast<int>(area.column - block.column);
    note_columns(metadata_t, &shared.of_column[column][(area.row - block.row) / 8]);
    __syncthreads();
    store_bytes(shared.of_column, weight.metadata_t, weight.columns, metadata_bytes(weight.rows),
                block.column, block.row / 8);
}

const void* kernel_of(int64_t element_size) {
    switch (element_size) {
        case 1:
            return reinterpret_cast<const void*>(transpose_kernel<1>);
        case 2:
            return reinterpret_cast<const void*>(transpose_kernel<2>);
        default:
            return reinterpret_cast<const void*>(transpose_kernel<4>);
    }
}

Status check_weight(const PackedWeight& weight) {
    const int64_t size = weight.element_size, rows = weight.rows, columns = weight.columns;
    if (size != 1 && size != 2 && size != 4) return Status::bad_element_size;
    if (!can_be_numbered(weight) || rows % kGroupSize != 0 || columns % kGroupSize != 0) {
        return Status::bad_weight_sizes;
    }
    if (rows * columns == 0) return Status::ok;
    for (const void* const pointer :
         {weight.values, weight.metadata, static_cast<const void*>(weight.values_t),
          static_cast<const void*>(weight.metadata_t)}) {
        if (pointer == nullptr) return Status::null_pointer;
        if (!aligned(pointer, 16)) return Status::misaligned_pointer;
    }
    const int64_t bytes = rows * columns / 2 * size;
    const bool apart = !overlap(weight.values, bytes, weight.values_t, bytes) &&
                       !overlap(weight.metadata, rows * metadata_bytes(columns), weight.metadata_t,
                                columns * metadata_bytes(rows));
    return apart ? Status::ok : Status::overlapping_buffers;
}

}  // namespace

Status transpose_two_four(const PackedWeight* weights, int64_t count, CUstream_st* stream) {
    for (int64_t i = 0; i < count; ++i) {
        const Status status = check_weight(weights[i]);
        if (status != Status::ok) return status;
    }
    const auto device_of_weight = [](const PackedWeight& w, int* device) {
        return device_of({w.values, w.metadata, w.values_t, w.metadata_t}, device);
    };
    int device = -1;
    Status status = device_of_weights(weights, count, device_of_weight, &device);
    if (status != Status::ok || device < 0) return status;
    const DeviceScope scope(device);
    if (scope.error() != cudaSuccess) return from_runtime(scope.error());
    for (const int64_t size : {1, 2, 4}) {
        const auto wanted = [&](const PackedWeight& weight) { return weight.element_size == size; };
        status = launch_on(weights, count, wanted, kernel_of(size), NoOption{}, stream);
        if (status != Status::ok) return status;
    }
    return Status::ok;
}

}  // namespace sparsekern::cuda
