// Leaf kernels that walk the bits of tiles: rows of tiles against a panel.

#include "kernel_table.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Tiles that a kernel takes at a time: their addresses are worked out once and serve every row.
constexpr int64_t kTilesAtOnce = 16;

// One tile, ready to be walked by rows.
template <class A, int V, class Value>
struct TileRows {
    const unsigned char* row_end;  // the byte behind the bits of row 0
    const int16_t* row_offset;
    Value* values;
    const A* x;  // the features of its first column

    TileRows() = default;
    TileRows(const PanelWork<A>& work, int64_t tile, Value* all_values) {
        const TileMatrix& m = *work.matrix;
        row_end = m.bits + (tile * m.tile_size * m.tile_size + m.tile_size) / 8;
        row_offset = m.row_offset + tile * m.tile_size;
        values = all_values + m.tile_start[tile];
        x = work.x + (m.tile_col[tile] * m.tile_size - work.first_column) * V * kLanes<A>;
    }

    // Reads eight bytes whatever the tile's size: those in front of the row, which are there (see
    // TileMatrix), are shifted out.
    uint64_t bits(int64_t row, int64_t row_bytes, int shift) const {
        uint64_t word;
        std::memcpy(&word, row_end + row * row_bytes - 8, 8);
        return word >> shift;
    }
};

// Asks for the tiles of the next visit: tiles are visited down a column, not as they lie in memory.
template <class A>
inline void prefetch_next(const PanelWork<A>& work, const A* values) {
    if (work.next_count == 0) return;
    const TileMatrix& m = *work.matrix;
    const int64_t tile_bytes = m.tile_size * m.tile_size / 8;
    const int64_t first = work.next_tiles[0];
    const int64_t last = work.next_tiles[work.next_count - 1] + 1;
    const char* bits = reinterpret_cast<const char*>(m.bits + first * tile_bytes);
    for (int64_t at = 0; at < (last - first) * tile_bytes; at += 64) __builtin_prefetch(bits + at, 0, 2);
    const char* value = reinterpret_cast<const char*>(values + m.tile_start[first]);
    const char* end = reinterpret_cast<const char*>(values + m.tile_start[last]);
    for (; value < end; value += 64) __builtin_prefetch(value, 0, 2);
}

// sum += the products of one tile row's values with the features that its bits name.
template <class A, int V>
inline void add_row(Vec<A> (&sum)[V], uint64_t bits, const A* value, const A* x) {
    for (; bits != 0; bits &= bits - 1) {
        const A* feature = x + __builtin_ctzll(bits) * (V * kLanes<A>);
        const Vec<A> weight = broadcast<A>(*value++);
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) sum[j] += weight * load<A>(feature + j * kLanes<A>);
    }
}

// The rows of some tiles: y[r] = start[r] + their products if Fresh, and y[r] += them if not.
template <class A, int V, bool Fresh>
void accumulate_tiles(const PanelWork<A>& given, const TileRows<A, V, const A>* tiles, int64_t count,
                      const A* start) {
    const PanelWork<A> work = given;
    const int64_t row_bytes = work.matrix->tile_size / 8;
    const int shift = static_cast<int>(64 - work.matrix->tile_size);
    A* y = work.y;
    for (int64_t r = work.first_row; r < work.rows; ++r, y += V * kLanes<A>) {
        // A group's products are summed on their own: one long chain of additions would lose digits.
        Vec<A> sum[V];
        const Vec<A> initial = Fresh && start != nullptr ? broadcast<A>(start[r - work.first_row]) : Vec<A>{};
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) sum[j] = initial;
        for (const TileRows<A, V, const A>* tile = tiles; tile != tiles + count; ++tile) {
            const uint64_t bits = tile->bits(r, row_bytes, shift);
            add_row<A, V>(sum, bits, tile->values + tile->row_offset[r], tile->x);
        }
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) {
            store<A>(y + j * kLanes<A>, Fresh ? sum[j] : sum[j] + load<A>(y + j * kLanes<A>));
        }
    }
}

template <class A, int V>
void accumulate(const PanelWork<A>& work, const A* values, bool fresh, const A* start) {
    TileRows<A, V, const A> tiles[kTilesAtOnce];
    prefetch_next(work, values);
    int64_t first = 0;
    do {
        const int64_t count = work.tile_count - first < kTilesAtOnce ? work.tile_count - first : kTilesAtOnce;
        for (int64_t i = 0; i < count; ++i) {
            tiles[i] = TileRows<A, V, const A>(work, work.tiles[first + i], values);
        }
        if (fresh) {
            accumulate_tiles<A, V, true>(work, tiles, count, start);
        } else {
            accumulate_tiles<A, V, false>(work, tiles, count, nullptr);
        }
        first += kTilesAtOnce;
        fresh = false;
    } while (first < work.tile_count);
}

template <class A, int V>
void dot(const PanelWork<A>& given, A* values_gradient, bool fresh) {
    constexpr int64_t lanes = kLanes<A>;
    const PanelWork<A> work = given;
    const int64_t row_bytes = work.matrix->tile_size / 8;
    const int shift = static_cast<int>(64 - work.matrix->tile_size);
    TileRows<A, V, A> tiles[kTilesAtOnce];
    for (int64_t first = 0; first < work.tile_count; first += kTilesAtOnce) {
        const int64_t count = work.tile_count - first < kTilesAtOnce ? work.tile_count - first : kTilesAtOnce;
        for (int64_t i = 0; i < count; ++i)
            tiles[i] = TileRows<A, V, A>(work, work.tiles[first + i], values_gradient);
        const A* y = work.y;
        for (int64_t r = work.first_row; r < work.rows; ++r, y += V * kLanes<A>) {
            Vec<A> gradient[V];
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) gradient[j] = load<A>(y + j * lanes);
            for (const TileRows<A, V, A>* tile = tiles; tile != tiles + count; ++tile) {
                A* out = tile->values + tile->row_offset[r];
                for (uint64_t bits = tile->bits(r, row_bytes, shift); bits != 0; bits &= bits - 1) {
                    const A* feature = tile->x + __builtin_ctzll(bits) * (V * lanes);
                    Vec<A> sum = gradient[0] * load<A>(feature);
#pragma GCC unroll 8
                    for (int j = 1; j < V; ++j) sum += gradient[j] * load<A>(feature + j * lanes);
                    const A total = sum_lanes<A>(sum);
                    *out = fresh ? total : *out + total;
                    ++out;
                }
            }
        }
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
