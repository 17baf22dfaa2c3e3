// update_topology: the table of layers and the sequence of kernels.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "launch.cuh"
#include "sparsekern/update_topology_cuda.h"
#include "topology_grid.cuh"
#include "topology_grow.cuh"

namespace sparsekern::cuda {
namespace {

// Layers that one launch of begin_kernel takes as its argument, of which there are at most 4 KiB.
constexpr int kChunkLayers = 12;
struct Chunk {
    Layer layers[kChunkLayers];
};
static_assert(sizeof(Chunk) + sizeof(Table) <= 4000, "kernel arguments are limited");

// Writes some layers to the table, with their first state and an empty histogram: one block for each. A copy
// from the host would need memory that outlives the call, and in a CUDA graph that of the recording.
__global__ void __launch_bounds__(kThreads, 4) begin_kernel(Chunk chunk, int first, Table table) {
    const int layer = first + static_cast<int>(blockIdx.x);
    unsigned long long* const histogram = table.histograms + static_cast<int64_t>(layer) * kBins;
    for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) histogram[bin] = 0;
    if (threadIdx.x != 0) return;
    const Layer& given = chunk.layers[blockIdx.x];
    table.layers[layer] = given;
    LayerState* const state = table.states + layer;
    const int64_t elements = given.grid.rows * given.grid.cols;
    state->drop = begin_selection(given.count, float_bits(given.value_type), elements);
    state->grow = begin_selection(given.count, float_bits(given.score_type), elements);
    state->list_size = 0;
    state->least = 0;
    state->blocks_done = 0;
}

FloatType score_type(const TopologyLayer& layer) {
    return layer.scores.is_listed ? layer.scores.listed.type : layer.scores.dense.type;
}

PatternSizes grid_of(const TopologyLayer& layer) {
    const PatternSizes& s = layer.pattern.sizes;
    return complete_sizes(s.rows, s.cols, s.tile_size, s.nnz);
}

int64_t list_capacity(const TopologyLayer& layer) {
    if (layer.scores.is_listed) return layer.count + layer.scores.listed.count;
    const PatternSizes& s = layer.pattern.sizes;
    return candidate_capacity(layer.count, s.rows * s.cols - (s.nnz - layer.count));
}

int64_t round_up(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Hands out the workspace, or only counts its bytes when there is none.
class Arena {
public:
    explicit Arena(void* data) : data_(static_cast<char*>(data)) {}

    template <class T>
    T* take(int64_t count) {
        char* const place = data_ == nullptr ? nullptr : data_ + used_;
        used_ += round_up(count * static_cast<int64_t>(sizeof(T)));
        return reinterpret_cast<T*>(place);
    }
    int64_t used() const { return used_; }

private:
    char* data_;
    int64_t used_ = 0;
};

Table take_table(Arena* arena, int64_t count, Order order) {
    Table table{};
    table.layers = arena->take<Layer>(count);
    table.states = arena->take<LayerState>(count);
    table.histograms = arena->take<unsigned long long>(count * kBins);
    table.count = static_cast<int>(count);
    table.order = order;
    return table;
}

Layer take_layer(Arena* arena, const TopologyLayer& given) {
    Layer layer{};
    layer.grid = grid_of(given);
    layer.from = sections(given.pattern);
    layer.from_header = given.pattern.data;
    layer.from_tiles = static_cast<int32_t>(given.pattern.sizes.tiles);
    layer.result = given.result;
    layer.values = given.values.data;
    layer.value_type = given.values.type;
    layer.is_listed = given.scores.is_listed;
    layer.score_type = score_type(given);
    layer.scores = layer.is_listed ? given.scores.listed.data : given.scores.dense.data;
    layer.active = given.scores.active.data;
    layer.positions = given.scores.positions;
    layer.listed = given.scores.listed.count;
    layer.count = given.count;
    layer.order = {layer.grid.cols, given.cin, given.positions};
    layer.capacity = list_capacity(given);
    layer.list_key = layer.score_type == FloatType::float64
                         ? static_cast<void*>(arena->take<uint64_t>(layer.capacity))
                         : static_cast<void*>(arena->take<uint32_t>(layer.capacity));
    layer.list_index = arena->take<int64_t>(layer.capacity);
    return layer;
}

// Blocks for `items` at `each` a block, none for nothing.
int64_t blocks_for(int64_t items, int64_t each, int64_t most) {
    return std::min((items + each - 1) / each, most);
}

int64_t blocks_of(const Layer& layer, int phase) {
    const int64_t tile_rows = layer.grid.tiles * layer.grid.tile_size;
    switch (phase) {
        case kValuePhase:  // each block ends with a histogram, so that they should not be too many
            return layer.count == 0 ? 0 : blocks_for(layer.grid.nnz, 16 * kThreads, 528);
        case kGrowPhase: {
            if (layer.count == 0) return 0;
            const int64_t stored = layer.from_tiles * layer.grid.tile_size;
            const int64_t items = layer.is_listed ? std::max(layer.listed, stored)
                                                  : layer.grid.rows * layer.grid.cols / kThreadItems + 1;
            return blocks_for(items, kThreads, 2112);
        }
        default:
            return blocks_for(tile_rows, kScanRows, 2112);
    }
}

struct Launches {
    int64_t blocks[kPhases] = {0, 0, 0};
    int drop_levels = 0;
    int grow_levels = 0;
    bool any_dense = false;
    bool any_listed = false;
};

void add_layer(Launches* launches, Layer* layer) {
    for (int phase = 0; phase < kPhases; ++phase) {
        layer->first_block[phase] = launches->blocks[phase];
        launches->blocks[phase] += blocks_of(*layer, phase);
    }
    if (layer->count == 0) return;
    const int index_digits = digits_of(index_bits(layer->grid.rows * layer->grid.cols));
    launches->drop_levels =
        std::max(launches->drop_levels, digits_of(float_bits(layer->value_type)) + index_digits);
    launches->grow_levels =
        std::max(launches->grow_levels, digits_of(float_bits(layer->score_type)) + index_digits);
    (layer->is_listed ? launches->any_listed : launches->any_dense) = true;
}

// Queues kernels one after another, up to the first error.
class Queue {
public:
    explicit Queue(CUstream_st* stream) : stream_(stream) {}

    template <class Kernel>
    void launch(Kernel* kernel, int64_t blocks, int threads, void** arguments) {
        if (error_ != cudaSuccess || blocks == 0) return;
        error_ = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                                  dim3(static_cast<unsigned>(threads)), arguments, 0, stream_);
    }
    template <class Kernel>
    void launch(Kernel* kernel, int64_t blocks, int threads, Table table) {
        void* arguments[] = {&table, &blocks};
        launch(kernel, blocks, threads, arguments);
    }
    Status status() const { return from_runtime(error_); }

private:
    CUstream_st* stream_;
    cudaError_t error_ = cudaSuccess;
};

bool is_type(FloatType type) { return type >= FloatType::float16 && type <= FloatType::float64; }

Status check_vector(const FloatVector& vector, int64_t count) {
    if (!is_type(vector.type)) return Status::bad_type;
    if (vector.count != count || count < 0) return Status::bad_count;
    if (vector.data == nullptr && count > 0) return Status::null_pointer;
    return aligned(vector.data, float_bits(vector.type) / 8) ? Status::ok : Status::misaligned_pointer;
}

Status check_scores(const TopologyLayer& layer) {
    const PatternSizes& s = layer.pattern.sizes;
    const GrowthScores& scores = layer.scores;
    if (!scores.is_listed) return check_vector(scores.dense, s.rows * s.cols);
    Status status = check_vector(scores.active, s.nnz);
    if (status == Status::ok) status = check_vector(scores.listed, scores.listed.count);
    if (status != Status::ok) return status;
    if (scores.active.type != scores.listed.type) return Status::bad_type;
    if (scores.positions == nullptr && scores.listed.count > 0) return Status::null_pointer;
    const int64_t least = std::min(layer.count, s.rows * s.cols - s.nnz);
    return scores.listed.count >= least ? Status::ok : Status::too_few_candidates;
}

Status check_layer(const TopologyLayer& layer) {
    const PatternSizes& s = layer.pattern.sizes;
    if (!consistent(s) || s.tile_rows * s.tile_cols > std::numeric_limits<int32_t>::max() || layer.cin < 1 ||
        layer.positions < 1 || layer.cin * layer.positions != s.cols) {
        return Status::bad_pattern_sizes;
    }
    if (layer.count < 0 || layer.count > s.nnz) return Status::bad_count;
    if (layer.pattern.data == nullptr || layer.result == nullptr) return Status::null_pointer;
    if (!aligned(layer.pattern.data, 16) || !aligned(layer.result, 16)) return Status::misaligned_pointer;
    if (overlap(layer.pattern.data, 4 * pattern_sections(s).total_words, layer.result,
                4 * pattern_sections(grid_of(layer)).total_words)) {
        return Status::overlapping_buffers;
    }
    const Status status = check_vector(layer.values, s.nnz);
    return status == Status::ok ? check_scores(layer) : status;
}

Status find_device(const TopologyLayer* layers, int64_t count, const void* workspace, int* device) {
    Status status = Status::ok;
    for (int64_t i = 0; i < count && status == Status::ok; ++i) {
        const TopologyLayer& layer = layers[i];
        status = device_of(
            {workspace, layer.result, layer.pattern.data, layer.values.data, layer.scores.dense.data,
             layer.scores.active.data, layer.scores.listed.data, layer.scores.positions},
            device);
    }
    return status;
}

Launches write_table(const TopologyLayer* layers, Arena* arena, const Table& table, Queue* queue) {
    Launches launches;
    for (int first = 0; first < table.count; first += kChunkLayers) {
        Chunk chunk{};
        const int count = std::min(kChunkLayers, table.count - first);
        for (int i = 0; i < count; ++i) {
            chunk.layers[i] = take_layer(arena, layers[first + i]);
            add_layer(&launches, &chunk.layers[i]);
        }
        Table copy = table;
        void* arguments[] = {&chunk, &first, &copy};
        queue->launch(begin_kernel, count, kThreads, arguments);
    }
    return launches;
}

}  // namespace

int64_t update_topology_workspace(const TopologyLayer* layers, int64_t count) {
    Arena arena(nullptr);
    take_table(&arena, count, Order::largest_magnitude);
    for (int64_t i = 0; i < count; ++i) {
        if (check_layer(layers[i]) != Status::ok) return 0;
        take_layer(&arena, layers[i]);
    }
    return arena.used();
}

Status update_topology(const TopologyLayer* layers, int64_t count, Order order, void* workspace,
                       int64_t workspace_bytes, CUstream_st* stream) {
    if (order != Order::largest_magnitude && order != Order::largest_value) return Status::bad_order;
    for (int64_t i = 0; i < count; ++i) {
        const Status status = check_layer(layers[i]);
        if (status != Status::ok) return status;
    }
    if (count <= 0) return Status::ok;
    if (workspace == nullptr || !aligned(workspace, 16) || count > std::numeric_limits<int32_t>::max() ||
        workspace_bytes < update_topology_workspace(layers, count)) {
        return Status::bad_workspace;
    }
    int device = -1;
    const Status status = find_device(layers, count, workspace, &device);
    if (status != Status::ok) return status;
    const DeviceScope scope(device);
    if (scope.error() != cudaSuccess) return from_runtime(scope.error());

    Arena arena(workspace);
    Queue queue(stream);
    const Table table = take_table(&arena, count, order);
    const Launches launches = write_table(layers, &arena, table, &queue);
    const int64_t* const blocks = launches.blocks;
    for (int i = 0; i < launches.drop_levels; ++i) {
        queue.launch(drop_level_kernel, blocks[kValuePhase], kThreads, table);
    }
    queue.launch(keep_kernel, blocks[kTilePhase], kThreads, table);
    if (launches.any_dense) {
        queue.launch(sample_kernel, count, kMostThreads, table);
        queue.launch(collect_kernel, blocks[kGrowPhase], kThreads, table);
    }
    if (launches.any_listed) queue.launch(list_kernel, blocks[kGrowPhase], kThreads, table);
    for (int i = 0; i < launches.grow_levels; ++i) {
        queue.launch(grow_level_kernel, blocks[kGrowPhase], kThreads, table);
    }
    queue.launch(grow_kernel, blocks[kGrowPhase], kThreads, table);
    queue.launch(count_tiles_kernel, blocks[kTilePhase], kThreads, table);
    queue.launch(finish_grid_kernel, count, kMostThreads, table);
    return queue.status();
}

}  // namespace sparsekern::cuda
