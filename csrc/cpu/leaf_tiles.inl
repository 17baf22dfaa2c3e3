// Leaf kernels that walk the bits of tiles: rows of tiles against a panel, or against one sample.

#include "kernel_table.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Tiles that a kernel takes at a time: their addresses are worked out once and serve every row.
constexpr int64_t kTilesAtOnce = 16;

// One tile, ready to be walked by rows.
template <class A, class Value>
struct TileRows {
    const unsigned char* row_end;  // the byte behind the bits of row 0
    const int16_t* row_offset;
    Value* values;
    const int64_t* column_offset;

    TileRows() = default;
    TileRows(const PanelWork<A>& work, int64_t tile, Value* all_values) {
        const TileMatrix& m = *work.matrix;
        row_end = m.bits + (tile * m.tile_size * m.tile_size + m.tile_size) / 8;
        row_offset = m.row_offset + tile * m.tile_size;
        values = all_values + m.tile_start[tile];
        column_offset = work.column_offset + m.tile_col[tile] * m.tile_size;
    }

    // Reads eight bytes whatever the tile's size: those in front of the row, which are there (see
    // TileMatrix), are shifted out.
    uint64_t bits(int64_t row, int64_t row_bytes, int shift) const {
        uint64_t word;
        std::memcpy(&word, row_end + row * row_bytes - 8, 8);
        return word >> shift;
    }
};

// Asks for a tile's bits and values ahead of their use: tiles are visited down a column, not as they lie in
// memory.
template <class A>
inline void prefetch_tile(const TileMatrix& m, const A* values, int64_t tile) {
    const int64_t tile_bytes = m.tile_size * m.tile_size / 8;
    const char* bits = reinterpret_cast<const char*>(m.bits + tile * tile_bytes);
    for (int64_t at = 0; at < tile_bytes; at += 64) __builtin_prefetch(bits + at, 0, 2);
    const char* first = reinterpret_cast<const char*>(values + m.tile_start[tile]);
    const char* last = reinterpret_cast<const char*>(values + m.tile_start[tile + 1]);
    for (; first < last; first += 64) __builtin_prefetch(first, 0, 2);
}

// sum += the products of one tile row's values with the features that its bits name.
template <class A, int V>
inline void add_row(Vec<A> (&sum)[V], uint64_t bits, const A* value, const A* x, const int64_t* offset) {
    for (; bits != 0; bits &= bits - 1) {
        const A* feature = x + offset[__builtin_ctzll(bits)];
        const Vec<A> weight = broadcast<A>(*value++);
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) sum[j] += weight * load<A>(feature + j * kLanes<A>);
    }
}

template <class A, int V>
void accumulate(const PanelWork<A>& given, const A* values, bool fresh, const A* start) {
    constexpr int64_t lanes = kLanes<A>;
    const PanelWork<A> work = given;
    const int64_t row_bytes = work.matrix->tile_size / 8;
    const int shift = static_cast<int>(64 - work.matrix->tile_size);
    TileRows<A, const A> tiles[kTilesAtOnce];
    if (work.next_tile >= 0) prefetch_tile<A>(*work.matrix, values, work.next_tile);
    int64_t first = 0;
    do {
        const int64_t count = work.tile_count - first < kTilesAtOnce ? work.tile_count - first : kTilesAtOnce;
        for (int64_t i = 0; i < count; ++i)
            tiles[i] = TileRows<A, const A>(work, work.tiles[first + i], values);
        for (int64_t r = 0; r < work.rows; ++r) {
            if (!fresh && count == 1 && tiles[0].bits(r, row_bytes, shift) == 0) continue;
            A* y = work.y + r * work.y_stride;
            Vec<A> sum[V];
            const Vec<A> initial = broadcast<A>(fresh && start != nullptr ? start[r] : A(0));
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) sum[j] = initial;
            for (const TileRows<A, const A>* tile = tiles; tile != tiles + count; ++tile) {
                const uint64_t bits = tile->bits(r, row_bytes, shift);
                add_row<A, V>(sum, bits, tile->values + tile->row_offset[r], work.x, tile->column_offset);
            }
            // A group's products are summed on their own: one long chain of additions would lose digits.
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) {
                store<A>(y + j * lanes, fresh ? sum[j] : sum[j] + load<A>(y + j * lanes));
            }
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
    TileRows<A, A> tiles[kTilesAtOnce];
    for (int64_t first = 0; first < work.tile_count; first += kTilesAtOnce) {
        const int64_t count = work.tile_count - first < kTilesAtOnce ? work.tile_count - first : kTilesAtOnce;
        for (int64_t i = 0; i < count; ++i)
            tiles[i] = TileRows<A, A>(work, work.tiles[first + i], values_gradient);
        for (int64_t r = 0; r < work.rows; ++r) {
            const A* y = work.y + r * work.y_stride;
            Vec<A> gradient[V];
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) gradient[j] = load<A>(y + j * lanes);
            for (const TileRows<A, A>* tile = tiles; tile != tiles + count; ++tile) {
                A* out = tile->values + tile->row_offset[r];
                const int64_t* offset = tile->column_offset;
                for (uint64_t bits = tile->bits(r, row_bytes, shift); bits != 0; bits &= bits - 1) {
                    const A* feature = work.x + offset[__builtin_ctzll(bits)];
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
