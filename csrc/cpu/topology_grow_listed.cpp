// Growing from a list: the dropped positions and the best of the others, which another op has found.
#include <algorithm>
#include <string>

#include "pattern_walk.h"
#include "topology_grow.h"
#include "topology_search.h"

namespace sparsekern {
namespace {

constexpr int64_t kTileValues = 64 * 64;

bool is_active(const PatternView& p, int64_t row, int64_t col) {
    const int64_t tile_row = row / p.tile_size, tile_col = col / p.tile_size;
    const int32_t* const end = p.tile_col + p.tile_row_ptr[tile_row + 1];
    const int32_t* const found = std::lower_bound(p.tile_col + p.tile_row_ptr[tile_row], end, tile_col);
    if (found == end || *found != tile_col) return false;
    return (p.row_bits(found - p.tile_col, row % p.tile_size) >> (col % p.tile_size)) & 1;
}

void check_positions(const PatternView& p, const int64_t* positions, int64_t count, int threads) {
    const int64_t elements = p.rows * p.cols;
    int64_t first = count;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : first)
    for (int64_t i = 0; i < count; ++i) {
        const int64_t at = positions[i];
        if (at < 0 || at >= elements || is_active(p, at / p.cols, at % p.cols)) first = std::min(first, i);
    }
    if (first == count) return;
    throw std::invalid_argument("positions: expected inactive ones below " + std::to_string(elements) +
                                ", got " + std::to_string(positions[first]) + " at " + std::to_string(first));
}

template <class Format, Order order>
class ListedGrowth {
public:
    using Storage = typename Format::Storage;
    using Key = typename Format::Key;

    ListedGrowth(const PatternView& pattern, const GrowthScores& scores, TopologyGrid* grid, int threads)
        : pattern_(pattern), scores_(scores), grid_(grid), threads_(threads) {}

    void run(int64_t count) {
        GrowthList<Key> list(count + scores_.listed.count);
        append_dropped(&list);
        append_listed(&list);
        const int64_t elements = pattern_.rows * pattern_.cols;
        list.select(count, elements, Format::kBits, threads_,
                    [this](int64_t index) { grid_->set_index(index); });
    }

private:
    static Key key(const FloatVector& scores, int64_t i) {
        return key_of<Format, order>(static_cast<const Storage*>(scores.data)[i]);
    }

    // Dropped are the active positions that the grid no longer has.
    void append_dropped(GrowthList<Key>* list) const {
        for_each_tile(pattern_, threads_, [&](int64_t tile, int64_t tile_row) {
            const PatternView& p = pattern_;
            Key keys[kTileValues];
            int64_t indices[kTileValues];
            int64_t found = 0, value = p.tile_start[tile];
            for (int64_t r = 0; r < p.tile_size; ++r) {
                const int64_t row = tile_row * p.tile_size + r;
                for_each_bit(p.row_bits(tile, r), [&](int column) {
                    const int64_t col = p.tile_col[tile] * p.tile_size + column;
                    if (!grid_->test(grid_->bit(row, col))) {
                        keys[found] = key(scores_.active, value);
                        indices[found++] = row * p.cols + col;
                    }
                    ++value;
                });
            }
            list->append(keys, indices, found);
        });
    }

    void append_listed(GrowthList<Key>* list) const {
#pragma omp parallel num_threads(threads_)
        {
            const Part part = Part::of_this_thread(scores_.listed.count);
            Key keys[kTileValues];
            for (int64_t begin = part.begin; begin < part.end; begin += kTileValues) {
                const int64_t count = std::min(kTileValues, part.end - begin);
                for (int64_t i = 0; i < count; ++i) keys[i] = key(scores_.listed, begin + i);
                list->append(keys, scores_.positions + begin, count);
            }
        }
    }

    const PatternView& pattern_;
    const GrowthScores& scores_;
    TopologyGrid* grid_;
    int threads_;
};

}  // namespace

void grow_listed(const PatternView& pattern, const GrowthScores& scores, int64_t count, Order order,
                 TopologyGrid* grid, int threads) {
    const int team = useful_threads(threads, scores.listed.count + pattern.nnz);
    check_positions(pattern, scores.positions, scores.listed.count, team);
    with_format(scores.listed.type, [&](auto format) {
        using Format = decltype(format);
        if (order == Order::largest_value) {
            ListedGrowth<Format, Order::largest_value>(pattern, scores, grid, team).run(count);
        } else {
            ListedGrowth<Format, Order::largest_magnitude>(pattern, scores, grid, team).run(count);
        }
    });
}

}  // namespace sparsekern
