// csrc/cuda/pack_two_four.cu as host code: its launcher, and the kernels that it launches run block by block.
#include "pack_two_four.cu"

namespace {

using namespace sparsekern;

cudaError_t run(const void* kernel, dim3 blocks, dim3 threads, void** arguments) {
    const auto pack = reinterpret_cast<void (*)(cuda::PackParts)>(const_cast<void*>(kernel));
    run_blocks_of(blocks.x, threads.x, [=] { pack(*static_cast<cuda::PackParts*>(arguments[0])); });
    return cudaSuccess;
}

// A weight as the test hands it over, each field of 64 bits.
struct Given {
    int64_t type;
    int64_t rows;
    int64_t columns;
    const void* weight;
    void* values;
    void* metadata;
    void* values_t;
    void* metadata_t;
};

}  // namespace

// Where `is_device` is 0, pointers are the host's, and the launcher says so.
extern "C" int run_pack_two_four(const Given* given, int64_t count, int transposable, int layout,
                                 int is_device) {
    host_launch = is_device == 0 ? nullptr : run;
    std::vector<cuda::TwoFourWeight> weights;
    for (int64_t i = 0; i < count; ++i) {
        const Given& g = given[i];
        weights.push_back({static_cast<WeightType>(g.type), g.rows, g.columns, g.weight, g.values, g.metadata,
                           g.values_t, g.metadata_t});
    }
    return static_cast<int>(cuda::pack_two_four(weights.data(), count, transposable != 0,
                                                static_cast<cuda::TwoFourLayout>(layout), nullptr));
}
