// csrc/cuda/transfer.cu as host code: its launcher's checks, and its kernel run block by block.
#include "transfer.cu"

namespace {

using sparsekern::PatternSizes;
using sparsekern::cuda::DevicePattern;
using sparsekern::cuda::TransferVector;

DevicePattern device_pattern(const int32_t* data) {
    PatternSizes sizes;
    sizes.tile_size = data[1];
    sizes.rows = data[2];
    sizes.cols = data[3];
    sizes.tile_rows = data[4];
    sizes.tile_cols = data[5];
    sizes.tiles = data[6];
    sizes.nnz = data[8];
    return {sizes, data};
}

unsigned most_blocks = 1;
unsigned threads_of_block = 1;

cudaError_t run(const void*, dim3 blocks, dim3, void** arguments) {
    using namespace sparsekern::cuda;
    run_blocks_of(blocks.x < most_blocks ? blocks.x : most_blocks, threads_of_block, [=] {
        transfer_kernel(*static_cast<DeviceSections*>(arguments[0]),
                        *static_cast<DeviceSections*>(arguments[1]), *static_cast<Vectors*>(arguments[2]),
                        *static_cast<int64_t*>(arguments[3]), *static_cast<int*>(arguments[4]),
                        *static_cast<int*>(arguments[5]));
    });
    return cudaSuccess;
}

}  // namespace

// The status of the launcher for pointers that are the host's.
extern "C" int launcher_status(const int32_t* from, const int32_t* to, const TransferVector* vectors,
                               int64_t count) {
    host_launch = nullptr;
    return static_cast<int>(
        sparsekern::cuda::transfer(device_pattern(from), device_pattern(to), vectors, count, nullptr));
}

// Runs what the launcher launches.
extern "C" int run_transfer(const int32_t* from, const int32_t* to, const TransferVector* vectors,
                            int64_t count, int blocks, int threads) {
    host_launch = run;
    most_blocks = static_cast<unsigned>(blocks);
    threads_of_block = static_cast<unsigned>(threads);
    return static_cast<int>(
        sparsekern::cuda::transfer(device_pattern(from), device_pattern(to), vectors, count, nullptr));
}
