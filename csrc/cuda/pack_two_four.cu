// pack_two_four: a block of threads has a block of the weight, a thread 8 x 8 of it in registers. It selects,
// and stores kept values in both directions from there; metadata, of which a thread has few bytes, are
// collected in shared memory and stored in longer pieces.
#include <cuda_runtime.h>

#include <cstdint>

#include "sparsekern/pack_two_four_cuda.h"
#include "two_four_blocks.cuh"
#include "two_four_launch.cuh"
#include "two_four_metadata.cuh"
#include "two_four_select.cuh"

namespace sparsekern::cuda {
namespace {

constexpr int kTilesDown = kBlockRows / 4, kTilesAcross = kBlockColumns / 4;
// Of tiles, a thread has every so many rows one.
constexpr int kTileStep = kThreads / kTilesAcross;

using PackParts = Parts<TwoFourWeight, TwoFourLayout>;

// What the threads of a block share.
template <bool kTransposable>
struct Shared {
    BlockMetadata metadata;
    TileNibbles table[kTransposable ? kTieBreaks : 1];
    TileNibbles tile[kTransposable ? kTilesDown : 1][kTilesAcross];
};

template <class Format>
__device__ inline void select_tiles(const TwoFourWeight& weight, const Block& block, Shared<true>* shared) {
    constexpr int kBytes = Format::kBits / 8;
    const int thread = static_cast<int>(threadIdx.x), across = thread % kTilesAcross;
    const int64_t row = block.row + thread / kTilesAcross * 4, column = block.column + across * 4;
    const int64_t pitch = weight.columns * kBytes;
    const char* from = static_cast<const char*>(weight.weight) + row * pitch + column * kBytes;
    const int64_t rows_left = column < weight.columns ? weight.rows - row : 0;
    Four<kBytes> rows[4], next[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) next[i] = load_four<kBytes>(from + i * pitch, rows_left > 0);
    shared->table[thread] = kTileNibbles.of[thread];
    if (thread < kTieBreaks - kThreads) shared->table[kThreads + thread] = kTileNibbles.of[kThreads + thread];
    __syncthreads();
#pragma unroll 1
    for (int down = 0; down < kTilesDown; down += kTileStep) {
        from += 4 * kTileStep * pitch;
        const int next_row = 4 * (down + kTileStep);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            rows[i] = next[i];
            next[i] = load_four<kBytes>(from + i * pitch, next_row < kBlockRows && next_row < rows_left);
        }
        shared->tile[down + thread / kTilesAcross][across] = select_tile_nibbles<Format>(rows, shared->table);
    }
    __syncthreads();
}

// Keeps two of each group in four rows, and stores them from `to` on, rows `pitch` bytes apart.
template <int kBytes>
__device__ inline void pack_rows(const Four<kBytes> (&left)[4], const Four<kBytes> (&right)[4],
                                 const uint32_t (&nibbles)[2], int rows, int groups, bool wide, char* to,
                                 int64_t pitch) {
    const Keeper<kBytes> keep_left(nibbles[0]), keep_right(nibbles[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Four<kBytes> four = join(keep_left.keep(left[i], i), keep_right.keep(right[i], i));
        store_pairs<kBytes>(to + i * pitch, four, i < rows ? groups : 0, wide);
    }
}

template <class Format, bool kTransposable>
__device__ inline void pack_area(const TwoFourWeight& weight, const Block& block, bool encode,
                                 Shared<kTransposable>* shared) {
    constexpr int kBytes = Format::kBits / 8;
    const Area area(weight.rows, weight.columns, block);
    const int row_in_block = static_cast<int>(area.row - block.row);
    const int column_in_block = static_cast<int>(area.column - block.column);
    const bool wide = weight.columns % kThreadSide == 0;
    const int64_t pitch = weight.columns * kBytes, place = area.row * pitch + area.column * kBytes;
    const char* const from = static_cast<const char*>(weight.weight) + place;
    char* const to = static_cast<char*>(weight.values) + place / 2;
    // Of each column, the two kept of the upper four rows, then all four; and its byte of metadata.
    Four<kBytes> kept_t[kThreadSide];
    uint32_t metadata_t[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int rows = area.rows - 4 * half;
        Four<kBytes> sides[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            load_groups<kBytes>(from + (4 * half + i) * pitch, i < rows ? area.groups : 0, wide, &sides[0][i],
                                &sides[1][i]);
        }
        uint32_t nibbles[2];
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            if constexpr (kTransposable) {
                TileNibbles tile = shared->tile[row_in_block / 4 + half][column_in_block / 4 + side];
                nibbles[side] = tile.rows;
                if (weight.values_t != nullptr) {
                    Four<kBytes> columns[4];
                    transpose(sides[side], columns);
                    if (encode) encode_nonzeros(columns, &tile.columns);
                    keep_columns<kBytes>(columns, tile.columns, half == 0, kept_t + 4 * side);
                    if (rows > 0) metadata_t[side] |= tile.columns << 4 * half;
                }
            } else {
                nibbles[side] = nibbles_of_largest<Format>(sides[side]);
            }
            if (encode) encode_nonzeros(sides[side], &nibbles[side]);
        }
        pack_rows<kBytes>(sides[0], sides[1], nibbles, rows, area.groups, wide, to + 2 * half * pitch,
                          pitch / 2);
        const uint32_t bytes = nibbles[0] | (area.groups > 1 ? nibbles[1] << 4 : 0);
        uint8_t* const metadata = &shared->metadata.of_row[row_in_block + 4 * half][column_in_block / 8];
#pragma unroll
        for (int i = 0; i < 4; ++i) metadata[i * (kBlockColumns / 8)] = static_cast<uint8_t>(bytes >> 8 * i);
    }
    if constexpr (kTransposable) {
        if (weight.values_t == nullptr) return;
        store_columns<kBytes>(area, weight.rows, kept_t, weight.values_t);
        note_columns(metadata_t, &shared->metadata.of_column[column_in_block][row_in_block / 8]);
    }
}

// Blocks of a multiprocessor at a time, at least, with as many registers as each needs.
template <class Format, bool kTransposable>
constexpr int kLeastBlocks = !kTransposable || Format::kBits == 8 ? 5
                             : Format::kBits == 16                ? 4
                                                                  : 3;

template <class Format, bool kTransposable>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<Format, kTransposable>)
    pack_kernel(PackParts parts) {
    constexpr int kBytes = Format::kBits / 8;
    __shared__ Shared<kTransposable> shared;
    Block block;
    const TwoFourWeight& weight = weight_of_block(parts, &block);
    const bool interleaved = kBytes < 4 && parts.option == TwoFourLayout::cutlass;
    if constexpr (kTransposable) select_tiles<Format>(weight, block, &shared);
    pack_area<Format, kTransposable>(weight, block, interleaved, &shared);
    __syncthreads();
    if (interleaved) {
        store_interleaved<kBytes>(shared.metadata, weight, block.row, block.column);
    } else {
        store_rows(shared.metadata, weight, block.row, block.column);
    }
}

template <class Format>
const void* kernel_of(bool transposable) {
    return transposable ? reinterpret_cast<const void*>(pack_kernel<Format, true>)
                        : reinterpret_cast<const void*>(pack_kernel<Format, false>);
}

const void* kernel_of(WeightType type, bool transposable) {
    switch (type) {
        case WeightType::float16:
            return kernel_of<Float16Format>(transposable);
        case WeightType::bfloat16:
            return kernel_of<BFloat16Format>(transposable);
        case WeightType::float32:
            return kernel_of<Float32Format>(transposable);
        default:
            return kernel_of<Int8Format>(transposable);
    }
}

Status check_sizes(const TwoFourWeight& weight, bool transposable, TwoFourLayout layout) {
    const int64_t rows = weight.rows, columns = weight.columns;
    if (!can_be_numbered(weight)) return Status::bad_weight_sizes;
    bool fits = columns % kGroupSize == 0 && (!transposable || rows % kGroupSize == 0);
    if (layout == TwoFourLayout::cutlass) {
        const int64_t least_rows = weight.type == WeightType::int8 ? 16 : 32;
        const int64_t least_columns = weight.type == WeightType::int8 ? 128 : 64;
        fits = fits && rows % least_rows == 0 && columns % least_columns == 0;
        if (weight.values_t != nullptr) {
            fits = fits && columns % least_rows == 0 && rows % least_columns == 0;
        }
    }
    return fits ? Status::ok : Status::bad_weight_sizes;
}

Status check_weight(const TwoFourWeight& weight, bool transposable, TwoFourLayout layout) {
    const bool is_int8 = weight.type == WeightType::int8;
    if (!is_int8 && weight.type != WeightType::float16 && weight.type != WeightType::bfloat16 &&
        (weight.type != WeightType::float32 || layout == TwoFourLayout::cutlass)) {
        return Status::bad_weight_type;
    }
    const bool transpose = weight.values_t != nullptr;
    if (transpose != (weight.metadata_t != nullptr) || (transpose && !transposable))
        return Status::bad_transpose;
    const Status status = check_sizes(weight, transposable, layout);
    const int64_t elements = weight.rows * weight.columns;
    if (status != Status::ok || elements == 0) return status;
    if (weight.weight == nullptr || weight.values == nullptr || weight.metadata == nullptr) {
        return Status::null_pointer;
    }
    const int64_t bytes = elements * (is_int8 ? 1 : float_bits(static_cast<FloatType>(weight.type)) / 8);
    for (void* const result : {weight.values, weight.metadata, weight.values_t, weight.metadata_t}) {
        if (!aligned(result, 16)) return Status::misaligned_pointer;
        if (result != nullptr && overlap(weight.weight, bytes, result, elements / 8)) {
            return Status::overlapping_buffers;
        }
    }
    return aligned(weight.weight, 16) ? Status::ok : Status::misaligned_pointer;
}

}  // namespace

Status pack_two_four(const TwoFourWeight* weights, int64_t count, bool transposable, TwoFourLayout layout,
                     CUstream_st* stream) {
    if (layout != TwoFourLayout::rows && layout != TwoFourLayout::cutlass) return Status::bad_layout;
    for (int64_t i = 0; i < count; ++i) {
        const Status status = check_weight(weights[i], transposable, layout);
        if (status != Status::ok) return status;
    }
    const auto device_of_weight = [](const TwoFourWeight& w, int* device) {
        return device_of({w.weight, w.values, w.metadata, w.values_t, w.metadata_t}, device);
    };
    int device = -1;
    Status status = device_of_weights(weights, count, device_of_weight, &device);
    if (status != Status::ok || device < 0) return status;
    const DeviceScope scope(device);
    if (scope.error() != cudaSuccess) return from_runtime(scope.error());
    for (const WeightType type :
         {WeightType::float16, WeightType::bfloat16, WeightType::float32, WeightType::int8}) {
        const auto wanted = [&](const TwoFourWeight& weight) { return weight.type == type; };
        status = launch_on(weights, count, wanted, kernel_of(type, transposable), layout, stream);
        if (status != Status::ok) return status;
    }
    return Status::ok;
}

}  // namespace sparsekern::cuda
