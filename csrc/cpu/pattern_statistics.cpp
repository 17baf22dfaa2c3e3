// Counts per neuron and per input channel, the position of every value, and a hash of the whole pattern.
#include <algorithm>
#include <vector>

#include "pattern_walk.h"
#include "sparsekern/pattern_values.h"

namespace sparsekern {

void fan_in(const PatternView& pattern, int64_t* counts, int64_t elements, int threads) {
    check_threads(threads);
    check_elements("counts", counts, sizeof(int64_t), elements, pattern.rows);
    threads = useful_threads(threads, pattern.tiles * pattern.tile_size);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < pattern.rows; ++n) {
        const int64_t tile_row = n / pattern.tile_size;
        int64_t active = 0;
        for (int64_t t = pattern.tile_row_ptr[tile_row]; t < pattern.tile_row_ptr[tile_row + 1]; ++t) {
            active += popcount64(pattern.row_bits(t, n % pattern.tile_size));
        }
        counts[n] = active;
    }
}

void fan_out(const PatternView& pattern, int64_t groups, int64_t* counts, int64_t elements, int threads) {
    check_threads(threads);
    if (groups < 1 || pattern.rows % groups != 0) {
        throw std::invalid_argument("groups must divide the " + std::to_string(pattern.rows) + " rows, got " +
                                    std::to_string(groups));
    }
    check_elements("counts", counts, sizeof(int64_t), elements, groups * pattern.cin);
    const int64_t rows_per_group = pattern.rows / groups;
    fill_zero(counts, elements, 1);
    threads = useful_threads(threads, pattern.tiles * pattern.tile_size + pattern.nnz);
    // Threads share out the columns of tiles; a channel is in several of them when the kernel has several
    // positions, so the counts are added up atomically. They are integers: the order cannot change the sum.
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t j = 0; j < pattern.tile_cols; ++j) {
        for (int64_t i = pattern.tile_ptr_t[j]; i < pattern.tile_ptr_t[j + 1]; ++i) {
            const int64_t tile = pattern.tile_order_t[i];
            const int64_t tile_row =
                std::upper_bound(pattern.tile_row_ptr, pattern.tile_row_ptr + pattern.tile_rows + 1, tile) -
                pattern.tile_row_ptr - 1;
            for (int64_t r = 0; r < pattern.tile_size; ++r) {
                const int64_t group = (tile_row * pattern.tile_size + r) / rows_per_group;
                for_each_bit(pattern.row_bits(tile, r), [&](int column) {
                    const int64_t channel = (j * pattern.tile_size + column) % pattern.cin;
                    int64_t& active = counts[group * pattern.cin + channel];
#pragma omp atomic
                    ++active;
                });
            }
        }
    }
}

void value_rows(const PatternView& pattern, int64_t* out, int64_t elements, int threads) {
    check_threads(threads);
    check_elements("out", out, sizeof(int64_t), elements, pattern.nnz);
    for_each_tile_row(pattern, threads, [&](const TileRow& row) {
        std::fill_n(out + row.first_value, popcount64(row.bits), row.matrix_row);
    });
}

void value_cols(const PatternView& pattern, int64_t* out, int64_t elements, int threads) {
    check_threads(threads);
    check_elements("out", out, sizeof(int64_t), elements, pattern.nnz);
    for_each_tile_row(pattern, threads, [&](const TileRow& row) {
        int64_t* to = out + row.first_value;
        for_each_bit(row.bits, [&](int column) { *to++ = row.first_col + column; });
    });
}

uint64_t checksum(const int32_t* data, int64_t words) {
    constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87ull;
    constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Full;
    const auto rotate = [](uint64_t x, int k) { return (x << k) | (x >> (64 - k)); };
    check_address("data", data, words, sizeof(int32_t));
    // Four lanes, because one would wait for its own multiplication at every step.
    uint64_t lanes[4] = {kPrime1, kPrime2, kPrime1 ^ kPrime2, static_cast<uint64_t>(words)};
    for (int64_t w = 0; w < words; w += 8) {
        uint64_t block[4] = {0, 0, 0, 0};
        std::memcpy(block, data + w, static_cast<size_t>(std::min<int64_t>(8, words - w)) * sizeof(int32_t));
        for (int i = 0; i < 4; ++i) lanes[i] = rotate(lanes[i] + block[i] * kPrime2, 31) * kPrime1;
    }
    uint64_t hash = 0;
    for (const uint64_t lane : lanes) {
        hash = (hash ^ lane) * kPrime1;
        hash ^= hash >> 29;
    }
    return hash;
}

}  // namespace sparsekern
