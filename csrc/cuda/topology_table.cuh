// What the kernels of update_topology share: the table of layers in device memory, and how a block finds its
// layer and reads keys.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "sections.cuh"
#include "sparsekern/grid.h"
#include "sparsekern/selection.h"

namespace sparsekern::cuda {

constexpr int kThreads = 256;
// A thread's elements in one round of collecting.
constexpr int kThreadItems = 32;

// Which work a kernel's blocks are shared out by: the values, whatever may grow, or the tiles of the grid.
enum Phase { kValuePhase = 0, kGrowPhase = 1, kTilePhase = 2, kPhases = 3 };

// A layer as kernels see it.
struct Layer {
    PatternSizes grid;  // of the result
    DeviceSections from;
    const int32_t* from_header;
    int32_t* result;
    const void* values;
    const void* scores;  // dense, or of the listed positions
    const void* active;
    const int64_t* positions;
    int64_t listed;
    int64_t count;
    int64_t capacity;  // of the list
    void* list_key;    // uint32_t, or uint64_t for scores of 64 bits
    int64_t* list_index;
    int64_t first_block[kPhases];
    WeightOrder order;
    int32_t from_tiles;
    FloatType value_type;
    FloatType score_type;
    bool is_listed;
};

// What a layer's kernels tell each other.
struct LayerState {
    Selection drop;
    Selection grow;
    unsigned long long list_size;
    uint64_t least;  // keys from here on are collected
    unsigned blocks_done;
};

struct Table {
    Layer* layers;
    LayerState* states;
    unsigned long long* histograms;  // kBins for each layer
    int count;
    Order order;
};

// A block's place in the work of its layer.
struct Share {
    int layer;
    int64_t block;
    int64_t blocks;

    __device__ int64_t first_thread() const { return block * blockDim.x + threadIdx.x; }
    __device__ int64_t threads() const { return blocks * blockDim.x; }
};

__device__ inline Share share_of_block(const Table& table, Phase phase, int64_t all_blocks) {
    int low = 0, high = table.count;
    while (low + 1 < high) {
        const int middle = (low + high) / 2;
        if (table.layers[middle].first_block[phase] <= blockIdx.x) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const int64_t first = table.layers[low].first_block[phase];
    const int64_t end = low + 1 < table.count ? table.layers[low + 1].first_block[phase] : all_blocks;
    return {low, static_cast<int64_t>(blockIdx.x) - first, end - first};
}

// Calls body(Format{}) with the format of a type.
template <class Body>
__device__ inline void with_format(FloatType type, const Body& body) {
    switch (type) {
        case FloatType::float16:
            return body(Float16Format{});
        case FloatType::bfloat16:
            return body(BFloat16Format{});
        case FloatType::float32:
            return body(Float32Format{});
        default:
            return body(Float64Format{});
    }
}

template <class Format>
__device__ inline uint64_t ordered_key(typename Format::Storage bits, Order order) {
    if (order == Order::largest_magnitude) return key_of<Format, Order::largest_magnitude>(bits);
    if (order == Order::largest_value) return key_of<Format, Order::largest_value>(bits);
    return key_of<Format, Order::smallest_magnitude>(bits);
}

__device__ inline uint64_t load_key(const void* data, FloatType type, Order order, int64_t i) {
    uint64_t key = 0;
    with_format(type, [&](auto format) {
        using Format = decltype(format);
        key = ordered_key<Format>(static_cast<const typename Format::Storage*>(data)[i], order);
    });
    return key;
}

__device__ inline uint64_t list_key(const Layer& layer, int64_t i) {
    return layer.score_type == FloatType::float64 ? static_cast<const uint64_t*>(layer.list_key)[i]
                                                  : static_cast<const uint32_t*>(layer.list_key)[i];
}

__device__ inline void set_list_item(const Layer& layer, int64_t i, uint64_t key, int64_t index) {
    if (layer.score_type == FloatType::float64) {
        static_cast<uint64_t*>(layer.list_key)[i] = key;
    } else {
        static_cast<uint32_t*>(layer.list_key)[i] = static_cast<uint32_t>(key);
    }
    layer.list_index[i] = index;
}

// Row and column of the matrix at which an element of the dense weight lies.
struct Position {
    int64_t row;
    int64_t col;
};

__device__ inline Position position_of(const WeightOrder& order, int64_t element) {
    if (((element | order.cols) >> 32) == 0) {  // a division of 64 bits takes several times as long
        const auto narrow = static_cast<uint32_t>(element), cols = static_cast<uint32_t>(order.cols);
        return {narrow / cols, column_of(order, narrow % cols)};
    }
    return {element / order.cols, column_of(order, element % order.cols)};
}

__device__ inline uint32_t* result_bits(const Layer& layer) {
    return reinterpret_cast<uint32_t*>(layer.result + pattern_sections(layer.grid).bits);
}

__device__ inline int64_t bit_of(const Layer& layer, const Position& at) {
    return grid_bit(layer.grid.tile_size, layer.grid.tile_cols, at.row, at.col);
}

}  // namespace sparsekern::cuda
