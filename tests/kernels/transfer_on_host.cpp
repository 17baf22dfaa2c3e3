// csrc/cuda/transfer.cu as host code: its launcher's checks, and its kernel run block by block.
#include "transfer.cu"

namespace {

using sparsekern::PatternSizes;
using sparsekern::cuda::DevicePattern;

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

template <class T>
void run_blocks(const DevicePattern& from, const void* from_values, const DevicePattern& to,
                void* to_values) {
    using namespace sparsekern::cuda;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        transfer_kernel<T>(sections(from), static_cast<const T*>(from_values), sections(to),
                           static_cast<T*>(to_values), to.sizes.tiles, static_cast<int>(to.sizes.tile_rows),
                           static_cast<int>(to.sizes.tile_size));
    }
}

}  // namespace

extern "C" int launcher_status(const int32_t* from, const void* from_values, const int32_t* to,
                               void* to_values, int64_t element_size) {
    return static_cast<int>(sparsekern::cuda::transfer(device_pattern(from), from_values, device_pattern(to),
                                                       to_values, element_size, nullptr));
}

extern "C" void run_kernel(const int32_t* from, const void* from_values, const int32_t* to, void* to_values,
                           int64_t element_size, int blocks) {
    gridDim.x = static_cast<unsigned>(blocks);
    const DevicePattern source = device_pattern(from);
    const DevicePattern target = device_pattern(to);
    if (element_size == 2) run_blocks<uint16_t>(source, from_values, target, to_values);
    if (element_size == 4) run_blocks<uint32_t>(source, from_values, target, to_values);
    if (element_size == 8) run_blocks<uint64_t>(source, from_values, target, to_values);
}
