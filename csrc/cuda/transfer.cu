// transfer: one block builds the values of one tile of the target pattern, reading the tile of the source
// pattern at the same place.
#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"
#include "sparsekern/transfer_cuda.h"

namespace sparsekern::cuda {
namespace {

constexpr int kMaxTileSize = 64;
constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 1 << 16;

// The sections that the kernel reads, in device memory.
struct DeviceSections {
    const int64_t* tile_start;
    const int32_t* tile_row_ptr;
    const int32_t* tile_col;
    const int16_t* row_offset;
    const unsigned char* bits;
};

DeviceSections sections(const DevicePattern& pattern) {
    const PatternSections at = pattern_sections(pattern.sizes);
    return {reinterpret_cast<const int64_t*>(pattern.data + at.tile_start), pattern.data + at.tile_row_ptr,
            pattern.data + at.tile_col, reinterpret_cast<const int16_t*>(pattern.data + at.row_offset),
            reinterpret_cast<const unsigned char*>(pattern.data + at.bits)};
}

// The bits of row `row`, counted over all tiles; a row is one word of tile_size bits.
__device__ uint64_t row_word(const unsigned char* bits, int64_t row, int tile_size) {
    switch (tile_size) {
        case 64:
            return reinterpret_cast<const uint64_t*>(bits)[row];
        case 32:
            return reinterpret_cast<const uint32_t*>(bits)[row];
        case 16:
            return reinterpret_cast<const uint16_t*>(bits)[row];
        default:
            return bits[row];
    }
}

// The number of elements of sorted[begin, end) that are at most `key`.
template <class T, class Key>
__device__ int count_at_most(const T* sorted, int begin, int end, Key key) {
    int low = begin;
    int high = end;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (sorted[middle] <= key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low - begin;
}

// The column of the set bit that has `rank` set bits below it.
__device__ int select_bit(uint64_t word, int rank) {
    int column = 0;
    for (int width = 32; width > 0; width /= 2) {
        const int below = __popcll(word & ((uint64_t{1} << width) - 1));
        if (rank >= below) {
            rank -= below;
            word >>= width;
            column += width;
        }
    }
    return column;
}

// The tile of `pattern` at a place of the grid of tiles, or -1 where it stores none.
__device__ int64_t find_tile(const DeviceSections& pattern, int tile_row, int tile_col) {
    const int begin = pattern.tile_row_ptr[tile_row];
    const int end = pattern.tile_row_ptr[tile_row + 1];
    const int tile = begin + count_at_most(pattern.tile_col, begin, end, tile_col) - 1;
    return tile >= begin && pattern.tile_col[tile] == tile_col ? tile : -1;
}

// What the rows of one target tile look like in both patterns.
struct SharedRows {
    uint64_t to_bits[kMaxTileSize];
    uint64_t from_bits[kMaxTileSize];
    int64_t from_start[kMaxTileSize];
    int16_t to_offset[kMaxTileSize];
};

template <class T>
__global__ void transfer_kernel(DeviceSections from, const T* __restrict__ from_values, DeviceSections to,
                                T* __restrict__ to_values, int64_t to_tiles, int tile_rows, int tile_size) {
    __shared__ SharedRows rows;
    for (int64_t tile = blockIdx.x; tile < to_tiles; tile += gridDim.x) {
        const int tile_row = count_at_most(to.tile_row_ptr, 1, tile_rows, tile);
        const int64_t from_tile = find_tile(from, tile_row, to.tile_col[tile]);
        for (int row = threadIdx.x; row < tile_size; row += blockDim.x) {
            const int64_t to_row = tile * tile_size + row;
            const int64_t from_row = from_tile * tile_size + row;
            rows.to_bits[row] = row_word(to.bits, to_row, tile_size);
            rows.to_offset[row] = to.row_offset[to_row];
            rows.from_bits[row] = from_tile < 0 ? 0 : row_word(from.bits, from_row, tile_size);
            rows.from_start[row] = from_tile < 0 ? 0 : from.tile_start[from_tile] + from.row_offset[from_row];
        }
        __syncthreads();

        // One thread a value, rather than one a position: at high sparsity few positions are active, and
        // neighbouring threads write neighbouring values.
        const int64_t start = to.tile_start[tile];
        const int count = static_cast<int>(to.tile_start[tile + 1] - start);
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            const int row = count_at_most(rows.to_offset, 0, tile_size, i) - 1;
            const int column = select_bit(rows.to_bits[row], i - rows.to_offset[row]);
            const uint64_t from_bits = rows.from_bits[row];
            const uint64_t below = from_bits & ((uint64_t{1} << column) - 1);
            const bool active = (from_bits >> column) & 1;
            to_values[start + i] = active ? from_values[rows.from_start[row] + __popcll(below)] : T{0};
        }
        __syncthreads();
    }
}

template <class T>
Status launch(const DevicePattern& from, const void* from_values, const DevicePattern& to, void* to_values,
              CUstream_st* stream) {
    DeviceSections from_sections = sections(from);
    DeviceSections to_sections = sections(to);
    const T* source = static_cast<const T*>(from_values);
    T* target = static_cast<T*>(to_values);
    int64_t tiles = to.sizes.tiles;
    int tile_rows = static_cast<int>(to.sizes.tile_rows);
    int tile_size = static_cast<int>(to.sizes.tile_size);
    void* arguments[] = {&from_sections, &source, &to_sections, &target, &tiles, &tile_rows, &tile_size};
    const dim3 blocks(static_cast<unsigned>(tiles < kMaxBlocks ? tiles : kMaxBlocks));
    const dim3 threads(tile_size == 8 ? 32 : kThreads);
    return from_runtime(cudaLaunchKernel(reinterpret_cast<const void*>(transfer_kernel<T>), blocks, threads,
                                         arguments, 0, stream));
}

Status check(const DevicePattern& from, const void* from_values, const DevicePattern& to,
             const void* to_values, int64_t element_size) {
    if (element_size != 2 && element_size != 4 && element_size != 8) return Status::bad_element_size;
    if (!consistent(from.sizes) || !consistent(to.sizes)) return Status::bad_pattern_sizes;
    if (from.sizes.rows != to.sizes.rows || from.sizes.cols != to.sizes.cols) return Status::different_shapes;
    if (from.sizes.tile_size != to.sizes.tile_size) return Status::different_tile_sizes;
    const bool missing_values =
        (from_values == nullptr && from.sizes.nnz > 0) || (to_values == nullptr && to.sizes.nnz > 0);
    if (from.data == nullptr || to.data == nullptr || missing_values) return Status::null_pointer;
    if (!aligned(from.data, 16) || !aligned(to.data, 16) || !aligned(from_values, element_size) ||
        !aligned(to_values, element_size)) {
        return Status::misaligned_pointer;
    }
    if (overlap(from_values, from.sizes.nnz * element_size, to_values, to.sizes.nnz * element_size)) {
        return Status::overlapping_buffers;
    }
    return Status::ok;
}

}  // namespace

Status transfer(const DevicePattern& from, const void* from_values, const DevicePattern& to, void* to_values,
                int64_t element_size, CUstream_st* stream) {
    Status status = check(from, from_values, to, to_values, element_size);
    if (status != Status::ok || to.sizes.nnz == 0) return status;
    int device = 0;
    status = device_of({from.data, from_values, to.data, to_values}, &device);
    if (status != Status::ok) return status;
    const DeviceScope scope(device);
    if (scope.error() != cudaSuccess) return from_runtime(scope.error());
    switch (element_size) {
        case 2:
            return launch<uint16_t>(from, from_values, to, to_values, stream);
        case 4:
            return launch<uint32_t>(from, from_values, to, to_values, stream);
        default:
            return launch<uint64_t>(from, from_values, to, to_values, stream);
    }
}

}  // namespace sparsekern::cuda
