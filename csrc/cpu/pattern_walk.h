// Visiting the tiles, tile rows and set bits of a pattern, shared between threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "check.h"
#include "sparsekern/pattern.h"

namespace sparsekern {

// One row of one tile that holds at least one value.
struct TileRow {
    int64_t matrix_row;
    int64_t first_col;    // matrix column of bit 0
    int64_t first_value;  // index of the value of the lowest set bit
    uint64_t bits;
};

// Threads that are worth starting for `work` simple steps: waking one costs as much as tens of thousands of
// them, and far more on a machine whose cores are busy.
inline int useful_threads(int threads, int64_t work) {
    constexpr int64_t kStepsPerThread = 65536;
    return static_cast<int>(std::min<int64_t>(threads, work / kStepsPerThread + 1));
}

inline void check_elements(const char* name, const void* data, int64_t element_bytes, int64_t elements,
                           int64_t expected) {
    if (elements != expected) {
        throw std::invalid_argument(std::string(name) + " must hold " + std::to_string(expected) +
                                    " elements, got " + std::to_string(elements));
    }
    check_address(name, data, elements, element_bytes);
}

// Calls visit(column) for every set bit, in ascending order.
template <typename Visit>
void for_each_bit(uint64_t bits, Visit&& visit) {
    for (; bits != 0; bits &= bits - 1) visit(__builtin_ctzll(bits));
}

// Calls visit(tile, tile_row) for every tile; each thread takes one run of tiles.
template <typename Visit>
void for_each_tile(const PatternView& p, int threads, const Visit& visit) {
    threads = useful_threads(threads, p.tiles * p.tile_size + p.nnz);
#pragma omp parallel num_threads(threads)
    {
        const int64_t begin = p.tiles * omp_get_thread_num() / omp_get_num_threads();
        const int64_t end = p.tiles * (omp_get_thread_num() + 1) / omp_get_num_threads();
        const int32_t* ptr = p.tile_row_ptr;
        int64_t tile_row = std::upper_bound(ptr, ptr + p.tile_rows + 1, begin) - ptr - 1;
        for (int64_t tile = begin; tile < end; ++tile) {
            while (ptr[tile_row + 1] <= tile) ++tile_row;
            visit(tile, tile_row);
        }
    }
}

// Calls visit(TileRow) for every row of a tile that holds a value.
template <typename Visit>
void for_each_tile_row(const PatternView& p, int threads, const Visit& visit) {
    for_each_tile(p, threads, [&](int64_t tile, int64_t tile_row) {
        for (int64_t r = 0; r < p.tile_size; ++r) {
            const uint64_t bits = p.row_bits(tile, r);
            if (bits == 0) continue;
            visit(TileRow{tile_row * p.tile_size + r, p.tile_col[tile] * p.tile_size, p.row_start(tile, r),
                          bits});
        }
    });
}

template <typename Element>
void fill_zero(Element* data, int64_t elements, int threads) {
    threads = useful_threads(threads, elements * static_cast<int64_t>(sizeof(Element)) / 16);
#pragma omp parallel num_threads(threads)
    {
        const int64_t begin = elements * omp_get_thread_num() / omp_get_num_threads();
        const int64_t end = elements * (omp_get_thread_num() + 1) / omp_get_num_threads();
        std::memset(data + begin, 0, static_cast<size_t>(end - begin) * sizeof(Element));
    }
}

}  // namespace sparsekern
