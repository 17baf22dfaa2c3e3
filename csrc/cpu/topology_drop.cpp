#include "topology_drop.h"

#include <algorithm>
#include <cstring>

#include "pattern_walk.h"
#include "topology_search.h"

namespace sparsekern {
namespace {

template <class Format>
uint64_t drop_key(typename Format::Storage bits) {
    return key_of<Format, Order::smallest_magnitude>(bits);
}

// Adds the undecided values of some tiles by the digit of their index.
template <class Format>
void count_by_index(const PatternView& p, const typename Format::Storage* values, const Selection& s,
                    int shift, int64_t* histogram, Part tiles) {
    const int32_t* const ptr = p.tile_row_ptr;
    int64_t tile_row = std::upper_bound(ptr, ptr + p.tile_rows + 1, tiles.begin) - ptr - 1;
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
        while (ptr[tile_row + 1] <= t) ++tile_row;
        const typename Format::Storage* value = values + p.tile_start[t];
        for (int64_t r = 0; r < p.tile_size; ++r) {
            const int64_t first = (tile_row * p.tile_size + r) * p.cols + p.tile_col[t] * p.tile_size;
            for_each_bit(p.row_bits(t, r), [&](int column) {
                const uint64_t key = drop_key<Format>(*value++);
                if (undecided(s, key, first + column)) ++histogram[bin_of(s, shift, key, first + column)];
            });
        }
    }
}

template <class Format>
Selection select_dropped(const PatternView& p, const typename Format::Storage* values, int64_t count,
                         int threads) {
    Selection s = begin_selection(count, Format::kBits, p.rows * p.cols);
    const auto key = [values](int64_t i) { return drop_key<Format>(values[i]); };
    const auto no_index = [](int64_t) { return int64_t{0}; };
    search(&s, threads, [&](const Selection& state, int shift, int64_t* histogram) {
        if (in_key_digits(state)) {
            count_items(state, shift, histogram, Part::of_this_thread(p.nnz), key, no_index);
        } else {
            count_by_index<Format>(p, values, state, shift, histogram, Part::of_this_thread(p.tiles));
        }
    });
    return s;
}

// Writes one row of tiles of the grid: the bits that stay.
template <class Format>
void write_kept(const PatternView& p, const typename Format::Storage* values, const Selection& dropped,
                int64_t tile_row, TopologyGrid* grid) {
    const size_t row_bytes = static_cast<size_t>(p.tile_size / 8);
    std::memset(grid->tile_bits(tile_row, 0), 0, row_bytes * static_cast<size_t>(p.tile_size * p.tile_cols));
    for (int64_t t = p.tile_row_ptr[tile_row]; t < p.tile_row_ptr[tile_row + 1]; ++t) {
        unsigned char* const to = grid->tile_bits(tile_row, p.tile_col[t]);
        const typename Format::Storage* value = values + p.tile_start[t];
        for (int64_t r = 0; r < p.tile_size; ++r) {
            const int64_t first = (tile_row * p.tile_size + r) * p.cols + p.tile_col[t] * p.tile_size;
            uint64_t kept = 0;
            for_each_bit(p.row_bits(t, r), [&](int column) {
                const bool goes = taken(dropped, drop_key<Format>(*value++), first + column);
                kept |= static_cast<uint64_t>(!goes) << column;
            });
            std::memcpy(to + static_cast<size_t>(r) * row_bytes, &kept, row_bytes);
        }
    }
}

}  // namespace

void drop(const PatternView& pattern, const FloatVector& values, int64_t count, TopologyGrid* grid,
          int threads) {
    with_format(values.type, [&](auto format) {
        using Format = decltype(format);
        const auto* const data = static_cast<const typename Format::Storage*>(values.data);
        const int team = useful_threads(threads, pattern.nnz + pattern.tiles * pattern.tile_size);
        const Selection dropped = select_dropped<Format>(pattern, data, count, team);
#pragma omp parallel for num_threads(team) schedule(dynamic)
        for (int64_t i = 0; i < pattern.tile_rows; ++i) write_kept<Format>(pattern, data, dropped, i, grid);
    });
}

}  // namespace sparsekern
