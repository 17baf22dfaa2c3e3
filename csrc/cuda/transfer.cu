// transfer: one block builds the values of one tile of the target pattern, for several vectors, reading the
// tile of the source pattern at the same place.
#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"
#include "sections.cuh"
#include "sparsekern/transfer_cuda.h"

namespace sparsekern::cuda {
namespace {

constexpr int kMaxTileSize = 64;
constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 1 << 16;

// The vectors of one launch, passed by value.
constexpr int kVectors = 8;
struct Vectors {
    TransferVector vector[kVectors];
    int count;
};

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

// What the rows of one target tile look like in both patterns.
struct SharedRows {
    uint64_t to_bits[kMaxTileSize];
    uint64_t from_bits[kMaxTileSize];
    int64_t from_start[kMaxTileSize];
    int16_t to_offset[kMaxTileSize];
};

template <class T>
__device__ inline void move(const TransferVector& vector, int64_t from, int64_t to) {
    T* const values = static_cast<T*>(vector.to_values);
    values[to] = from < 0 ? T{0} : static_cast<const T*>(vector.from_values)[from];
}

// Value `to` of every vector from value `from`, or 0 where that is negative.
__device__ inline void move_all(const Vectors& vectors, int64_t from, int64_t to) {
    for (int v = 0; v < vectors.count; ++v) {
        const TransferVector& vector = vectors.vector[v];
        switch (vector.element_size) {
            case 2:
                move<uint16_t>(vector, from, to);
                break;
            case 4:
                move<uint32_t>(vector, from, to);
                break;
            default:
                move<uint64_t>(vector, from, to);
        }
    }
}

__global__ void transfer_kernel(DeviceSections from, DeviceSections to, Vectors vectors, int64_t to_tiles,
                                int tile_rows, int tile_size) {
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
            move_all(vectors, active ? rows.from_start[row] + __popcll(below) : -1, start + i);
        }
        __syncthreads();
    }
}

Status launch(const DevicePattern& from, const DevicePattern& to, Vectors vectors, CUstream_st* stream) {
    DeviceSections from_sections = sections(from);
    DeviceSections to_sections = sections(to);
    int64_t tiles = to.sizes.tiles;
    int tile_rows = static_cast<int>(to.sizes.tile_rows);
    int tile_size = static_cast<int>(to.sizes.tile_size);
    void* arguments[] = {&from_sections, &to_sections, &vectors, &tiles, &tile_rows, &tile_size};
    const dim3 blocks(static_cast<unsigned>(tiles < kMaxBlocks ? tiles : kMaxBlocks));
    const dim3 threads(tile_size == 8 ? 32 : kThreads);
    return from_runtime(cudaLaunchKernel(reinterpret_cast<const void*>(transfer_kernel), blocks, threads,
                                         arguments, 0, stream));
}

Status check_patterns(const DevicePattern& from, const DevicePattern& to) {
    if (!consistent(from.sizes) || !consistent(to.sizes)) return Status::bad_pattern_sizes;
    if (from.sizes.rows != to.sizes.rows || from.sizes.cols != to.sizes.cols) return Status::different_shapes;
    if (from.sizes.tile_size != to.sizes.tile_size) return Status::different_tile_sizes;
    if (from.data == nullptr || to.data == nullptr) return Status::null_pointer;
    return aligned(from.data, 16) && aligned(to.data, 16) ? Status::ok : Status::misaligned_pointer;
}

Status check_vector(const DevicePattern& from, const DevicePattern& to, const TransferVector& vector) {
    const int64_t size = vector.element_size;
    if (size != 2 && size != 4 && size != 8) return Status::bad_element_size;
    if ((vector.from_values == nullptr && from.sizes.nnz > 0) ||
        (vector.to_values == nullptr && to.sizes.nnz > 0)) {
        return Status::null_pointer;
    }
    if (!aligned(vector.from_values, size) || !aligned(vector.to_values, size)) {
        return Status::misaligned_pointer;
    }
    if (overlap(vector.from_values, from.sizes.nnz * size, vector.to_values, to.sizes.nnz * size)) {
        return Status::overlapping_buffers;
    }
    return Status::ok;
}

}  // namespace

Status transfer(const DevicePattern& from, const DevicePattern& to, const TransferVector* vectors,
                int64_t count, CUstream_st* stream) {
    Status status = check_patterns(from, to);
    for (int64_t v = 0; v < count && status == Status::ok; ++v) status = check_vector(from, to, vectors[v]);
    if (status != Status::ok || to.sizes.nnz == 0 || count <= 0) return status;
    int device = -1;
    status = device_of({from.data, to.data}, &device);
    for (int64_t v = 0; v < count && status == Status::ok; ++v) {
        status = device_of({from.data, vectors[v].from_values, vectors[v].to_values}, &device);
    }
    if (status != Status::ok) return status;
    const DeviceScope scope(device);
    if (scope.error() != cudaSuccess) return from_runtime(scope.error());
    for (int64_t first = 0; first < count && status == Status::ok; first += kVectors) {
        Vectors some{};
        some.count = static_cast<int>(count - first < kVectors ? count - first : kVectors);
        for (int v = 0; v < some.count; ++v) some.vector[v] = vectors[first + v];
        status = launch(from, to, some, stream);
    }
    return status;
}

}  // namespace sparsekern::cuda
