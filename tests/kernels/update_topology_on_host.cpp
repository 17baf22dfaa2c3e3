// csrc/cuda/update_topology.cu as host code: its launcher, and the kernels that it launches run block by
// block.
#include "update_topology.cu"

namespace {

using namespace sparsekern;

unsigned threads_of_block = 1;

cudaError_t run(const void* kernel, dim3 blocks, dim3, void** arguments) {
    const auto call = [=] {
        if (kernel == reinterpret_cast<const void*>(cuda::begin_kernel)) {
            cuda::begin_kernel(*static_cast<cuda::Chunk*>(arguments[0]), *static_cast<int*>(arguments[1]),
                               *static_cast<cuda::Table*>(arguments[2]));
        } else if (kernel == reinterpret_cast<const void*>(cuda::sample_kernel) ||
                   kernel == reinterpret_cast<const void*>(cuda::finish_grid_kernel)) {
            reinterpret_cast<void (*)(cuda::Table)>(const_cast<void*>(kernel))(
                *static_cast<cuda::Table*>(arguments[0]));
        } else {
            reinterpret_cast<void (*)(cuda::Table, int64_t)>(const_cast<void*>(kernel))(
                *static_cast<cuda::Table*>(arguments[0]), *static_cast<int64_t*>(arguments[1]));
        }
    };
    run_blocks_of(blocks.x, threads_of_block, call);
    return cudaSuccess;
}

// A layer as the test hands it over: addresses and counts, each of 64 bits.
struct Given {
    const int32_t* pattern;
    int64_t value_type;
    const void* values;
    int64_t score_type;
    const void* scores;
    int64_t score_count;
    const void* active;  // null for dense scores
    const int64_t* positions;
    int64_t count;
    int32_t* result;
};

std::vector<cuda::TopologyLayer> layers_of(const Given* given, int64_t count) {
    std::vector<cuda::TopologyLayer> layers(static_cast<size_t>(count));
    for (cuda::TopologyLayer& layer : layers) {
        const int32_t* const header = given->pattern;
        layer.pattern.data = header;
        layer.pattern.sizes = {header[1], header[2], header[3], header[4], header[5], header[6], header[8]};
        layer.cin = header[11];
        layer.positions = static_cast<int64_t>(header[12]) * header[13];
        layer.values = {static_cast<FloatType>(given->value_type), given->values, header[8]};
        const FloatVector scores = {static_cast<FloatType>(given->score_type), given->scores,
                                    given->score_count};
        layer.scores.is_listed = given->active != nullptr;
        (layer.scores.is_listed ? layer.scores.listed : layer.scores.dense) = scores;
        layer.scores.active = {scores.type, given->active, layer.scores.is_listed ? header[8] : 0};
        layer.scores.positions = given->positions;
        layer.count = given->count;
        layer.result = given->result;
        ++given;
    }
    return layers;
}

}  // namespace

extern "C" int64_t workspace_bytes(const Given* given, int64_t count) {
    return cuda::update_topology_workspace(layers_of(given, count).data(), count);
}

// `threads` threads a block, or none: then pointers are the host's, and the launcher says so.
extern "C" int run_update_topology(const Given* given, int64_t count, int order, void* workspace,
                                   int64_t bytes, int threads) {
    host_launch = threads == 0 ? nullptr : run;
    threads_of_block = static_cast<unsigned>(threads);
    return static_cast<int>(cuda::update_topology(layers_of(given, count).data(), count,
                                                  static_cast<Order>(order), workspace, bytes, nullptr));
}
