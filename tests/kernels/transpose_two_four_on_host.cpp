// csrc/cuda/transpose_two_four.cu as host code: its launcher, and the kernels that it launches run block by
// block.
#include "transpose_two_four.cu"

namespace {

using namespace sparsekern;

cudaError_t run(const void* kernel, dim3 blocks, dim3 threads, void** arguments) {
    const auto transpose = reinterpret_cast<void (*)(cuda::TransposeParts)>(const_cast<void*>(kernel));
    run_blocks_of(blocks.x, threads.x, [=] { transpose(*static_cast<cuda::TransposeParts*>(arguments[0])); });
    return cudaSuccess;
}

}  // namespace

// Where `is_device` is 0, pointers are the host's, and the launcher says so.
extern "C" int run_transpose_two_four(const cuda::PackedWeight* weights, int64_t count, int is_device) {
    host_launch = is_device == 0 ? nullptr : run;
    return static_cast<int>(cuda::transpose_two_four(weights, count, nullptr));
}
