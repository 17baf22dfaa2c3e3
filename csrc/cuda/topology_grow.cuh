// The second half of update_topology on the GPU: what may grow is collected, the threshold found, the bits
// set.
//
// One pass over dense scores collects those above a bound that a sample gives, few more than are wanted.
// Where the sample misled, which the list's size tells, the following kernels read all scores in place of the
// list.
#pragma once

#include "topology_drop.cuh"

namespace sparsekern::cuda {

constexpr int kSamples = 8192;
// Items of the list for each block that searches it.
constexpr int64_t kListItems = 4096;

__device__ inline bool is_kept(const Layer& layer, const Position& at) {
    return test_bit(result_bits(layer), bit_of(layer, at));
}

// Whether the list holds what has to be searched; otherwise all dense scores do.
__device__ inline bool uses_list(const Layer& layer, const LayerState& state) {
    const auto size = static_cast<int64_t>(state.list_size);
    return layer.is_listed || (size <= layer.capacity && size >= layer.count);
}

// The bound: one block for each layer. The list's memory holds the sample, the list is empty afterwards.
__global__ void __launch_bounds__(kMostThreads, 1) sample_kernel(Table table) {
    __shared__ Selection s;
    const Layer& layer = table.layers[blockIdx.x];
    LayerState* const state = table.states + blockIdx.x;
    const int64_t elements = layer.grid.rows * layer.grid.cols;
    const int64_t free = elements - (layer.grid.nnz - layer.count);
    if (layer.is_listed || layer.count == 0 || layer.capacity == free) return;
    for (int64_t base = 0; base < kSamples; base += blockDim.x) {
        const int64_t i = base + threadIdx.x;
        const int64_t element = sample_place(i, elements);
        const bool counts = i < kSamples && !is_kept(layer, position_of(layer.order, element));
        const int64_t at = reserve(state, counts);
        if (counts)
            set_list_item(layer, at, load_key(layer.scores, layer.score_type, table.order, element), 0);
    }
    const auto samples = static_cast<int64_t>(*static_cast<volatile unsigned long long*>(&state->list_size));
    const int64_t rank = samples == 0 ? 1 : sample_rank(samples, free, layer.count);
    if (threadIdx.x == 0) s = begin_selection(rank, float_bits(layer.score_type), 1);
    __syncthreads();
    while (rank <= samples && !s.done && in_key_digits(s)) {
        unsigned* const bins = BlockHistogram::clear();
        const Selection now = s;
        const int shift = digit_shift(now);
        for (int64_t i = threadIdx.x; i < samples; i += blockDim.x) {
            const uint64_t key = list_key(layer, i);
            if (key >= now.low && key <= now.high) atomicAdd(bins + bin_of(now, shift, key, 0), 1u);
        }
        __syncthreads();
        block_narrow(&s, bins);
    }
    if (threadIdx.x == 0) {
        state->least = rank <= samples ? s.low : 0;
        state->list_size = 0;
    }
}

template <class Storage>
struct alignas(16) Vector {
    static constexpr int kItems = 16 / sizeof(Storage);
    Storage items[kItems];
};

// Dense scores that a thread looks at in one round: as many as its registers hold, and a word has bits for.
template <class Storage>
__device__ constexpr int items_of_thread() {
    return sizeof(Storage) == 8 ? kThreadItems / 2 : kThreadItems;
}

// A block's chunk is one round of its threads, in vectors that neighbouring threads read
// side by side. The element that bit `bit` of a thread's matches stands for:
template <class Storage>
__device__ inline int64_t element_of(int64_t chunk, int bit) {
    constexpr int items = Vector<Storage>::kItems;
    const int64_t vector = static_cast<int64_t>(bit / items) * blockDim.x + threadIdx.x;
    return chunk + vector * items + bit % items;
}

// Which of a thread's scores in a chunk reach `least`.
template <class Format, Order order>
__device__ inline uint32_t matches(const typename Format::Storage* scores, int64_t chunk, int64_t elements,
                                   typename Format::Key least) {
    using Storage = typename Format::Storage;
    constexpr int items = Vector<Storage>::kItems;
    constexpr int count = items_of_thread<Storage>();
    uint32_t found = 0;
    const bool whole = chunk + static_cast<int64_t>(count) * blockDim.x <= elements;
    if (whole && reinterpret_cast<uintptr_t>(scores) % 16 == 0) {
        Vector<Storage> vectors[count / items];
#pragma unroll
        for (int v = 0; v < count / items; ++v) {
            vectors[v] =
                *reinterpret_cast<const Vector<Storage>*>(scores + element_of<Storage>(chunk, v * items));
        }
#pragma unroll
        for (int bit = 0; bit < count; ++bit) {
            const bool match = key_of<Format, order>(vectors[bit / items].items[bit % items]) >= least;
            found |= static_cast<uint32_t>(match) << bit;
        }
    } else {
        for (int bit = 0; bit < count; ++bit) {
            const int64_t element = element_of<Storage>(chunk, bit);
            if (element >= elements) continue;
            found |= static_cast<uint32_t>(key_of<Format, order>(scores[element]) >= least) << bit;
        }
    }
    return found;
}

template <class Format, Order order>
__device__ inline void collect(const Layer& layer, LayerState* state, const Share& share) {
    using Storage = typename Format::Storage;
    const auto* const scores = static_cast<const Storage*>(layer.scores);
    const auto least = static_cast<typename Format::Key>(state->least);
    const int64_t elements = layer.grid.rows * layer.grid.cols;
    const int64_t size = static_cast<int64_t>(items_of_thread<Storage>()) * blockDim.x;
    for (int64_t chunk = share.block * size; chunk < elements; chunk += share.blocks * size) {
        const uint32_t reached = matches<Format, order>(scores, chunk, elements, least);
        uint32_t found = 0;
        for (uint32_t rest = reached; rest != 0; rest &= rest - 1) {
            const Position at = position_of(layer.order, element_of<Storage>(chunk, lowest_bit(rest)));
            if (!is_kept(layer, at)) found |= rest & (~rest + 1);
        }
        int64_t next = reserve(state, __popcll(found));
        for (; found != 0; found &= found - 1, ++next) {
            const int64_t element = element_of<Storage>(chunk, lowest_bit(found));
            const Position at = position_of(layer.order, element);
            if (next >= layer.capacity) break;
            set_list_item(layer, next, key_of<Format, order>(scores[element]),
                          at.row * layer.grid.cols + at.col);
        }
    }
}

__global__ void __launch_bounds__(kThreads, 3) collect_kernel(Table table, int64_t blocks) {
    const Share share = share_of_block(table, kGrowPhase, blocks);
    const Layer& layer = table.layers[share.layer];
    LayerState* const state = table.states + share.layer;
    if (layer.is_listed || layer.count == 0) return;
    with_format(layer.score_type, [&](auto format) {
        using Format = decltype(format);
        if (table.order == Order::largest_value) {
            collect<Format, Order::largest_value>(layer, state, share);
        } else {
            collect<Format, Order::largest_magnitude>(layer, state, share);
        }
    });
}

// Whether a position that a caller lists may grow: inside the matrix and inactive before.
__device__ inline bool may_grow(const Layer& layer, int64_t index) {
    if (index < 0 || index >= layer.grid.rows * layer.grid.cols) return false;
    const int64_t row = index / layer.grid.cols, col = index % layer.grid.cols;
    const int shift = tile_shift(layer.grid.tile_size);
    const int64_t tile =
        find_tile(layer.from, static_cast<int>(row >> shift), static_cast<int>(col >> shift));
    if (tile < 0) return true;
    const int64_t inside = layer.grid.tile_size - 1;
    const uint64_t bits =
        row_word(layer.from.bits, (tile << shift) + (row & inside), static_cast<int>(inside + 1));
    return ((bits >> (col & inside)) & 1) == 0;
}

// Fills the list from what a caller lists and the dropped positions.
__global__ void __launch_bounds__(kThreads, 4) list_kernel(Table table, int64_t blocks) {
    const Share share = share_of_block(table, kGrowPhase, blocks);
    const Layer& layer = table.layers[share.layer];
    LayerState* const state = table.states + share.layer;
    if (!layer.is_listed || layer.count == 0) return;
    const int64_t step = share.threads();
    // Bounds are those of the whole block, since all of its threads reserve together.
    for (int64_t base = share.block * blockDim.x; base < layer.listed; base += step) {
        const int64_t i = base + threadIdx.x;
        const int64_t index = i < layer.listed ? layer.positions[i] : -1;
        const bool counts = may_grow(layer, index);
        const int64_t at = reserve(state, counts);
        if (!counts || at >= layer.capacity) continue;
        set_list_item(layer, at, load_key(layer.scores, layer.score_type, table.order, i), index);
    }
    const int64_t rows = layer.from_tiles * layer.grid.tile_size;
    const uint32_t* const kept = result_bits(layer);
    for (int64_t base = share.block * blockDim.x; base < rows; base += step) {
        const int64_t i = base + threadIdx.x;
        StoredRow at{};
        uint64_t gone = 0;
        if (i < rows) {
            at = stored_row(layer, i);
            const int64_t first = bit_of(layer, {at.row, at.first - at.row * layer.grid.cols});
            for (uint64_t bits = at.bits; bits != 0; bits &= bits - 1) {
                if (!test_bit(kept, first + lowest_bit(bits))) gone |= bits & (~bits + 1);
            }
        }
        int64_t next = reserve(state, __popcll(gone));
        for (; gone != 0 && next < layer.capacity; gone &= gone - 1, ++next) {
            const int bit = lowest_bit(gone);
            const int64_t value = at.value + __popcll(at.bits & ((uint64_t{1} << bit) - 1));
            set_list_item(layer, next, load_key(layer.active, layer.score_type, table.order, value),
                          at.first + bit);
        }
    }
}

// Calls visit(key, index, position) for this thread's free elements of the dense weight. Only the thread that
// an element belongs to sets its bit, so that others may do so in the same word meanwhile.
template <class Visit>
__device__ inline void for_each_free(const Layer& layer, const Share& share, Order order,
                                     const Visit& visit) {
    const int64_t elements = layer.grid.rows * layer.grid.cols;
    for (int64_t i = share.first_thread(); i < elements; i += share.threads()) {
        const Position at = position_of(layer.order, i);
        if (is_kept(layer, at)) continue;
        visit(load_key(layer.scores, layer.score_type, order, i), at.row * layer.grid.cols + at.col, at);
    }
}

// One digit of the search for what grows.
__global__ void __launch_bounds__(kThreads, 4) grow_level_kernel(Table table, int64_t blocks) {
    Share share = share_of_block(table, kGrowPhase, blocks);
    const Layer& layer = table.layers[share.layer];
    LayerState* const state = table.states + share.layer;
    const Selection s = state->grow;
    if (s.done) return;
    const int shift = digit_shift(s);
    const bool from_list = uses_list(layer, *state);
    const auto size = static_cast<int64_t>(state->list_size);
    if (from_list) {  // fewer blocks: each adds a whole histogram
        const int64_t worth = (size + kListItems - 1) / kListItems;
        if (worth < share.blocks) share.blocks = worth > 0 ? worth : 1;
        if (share.block >= share.blocks) return;
    }
    unsigned* const bins = BlockHistogram::clear();
    const auto count = [&](uint64_t key, int64_t index) {
        if (undecided(s, key, index)) atomicAdd(bins + bin_of(s, shift, key, index), 1u);
    };
    if (from_list) {
        const bool by_key = in_key_digits(s);
        for (int64_t i = share.first_thread(); i < size; i += share.threads()) {
            const uint64_t key = list_key(layer, i);
            count(key, by_key ? s.first : key == s.low ? layer.list_index[i] : 0);
        }
    } else {
        for_each_free(layer, share, table.order,
                      [&](uint64_t key, int64_t index, const Position&) { count(key, index); });
    }
    BlockHistogram::finish(table, share.layer, &state->grow, share.blocks);
}

// Sets the bits of what grows.
__global__ void __launch_bounds__(kThreads, 4) grow_kernel(Table table, int64_t blocks) {
    const Share share = share_of_block(table, kGrowPhase, blocks);
    const Layer& layer = table.layers[share.layer];
    const LayerState& state = table.states[share.layer];
    if (layer.count == 0) return;
    const Selection s = state.grow;
    uint32_t* const bits = result_bits(layer);
    const auto set = [&](const Position& at) {
        const int64_t bit = bit_of(layer, at);
        atomicOr(bits + bit / 32, 1u << (bit % 32));
    };
    if (uses_list(layer, state)) {
        const auto size = static_cast<int64_t>(state.list_size);
        for (int64_t i = share.first_thread(); i < size; i += share.threads()) {
            const int64_t index = layer.list_index[i];
            if (taken(s, list_key(layer, i), index)) set({index / layer.grid.cols, index % layer.grid.cols});
        }
    } else {
        for_each_free(layer, share, table.order, [&](uint64_t key, int64_t index, const Position& at) {
            if (taken(s, key, index)) set(at);
        });
    }
}

}  // namespace sparsekern::cuda
