// A tile's transpose: its bits by swapping blocks, its values by counting.

#include "kernel_table.h"
#include "nonzero_list.inl"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Transposes 64 words of 64 bits: swaps ever smaller off-diagonal blocks.
inline void transpose_bits(uint64_t (&words)[64]) {
    uint64_t mask = 0x00000000FFFFFFFFu;
    for (int width = 32; width > 0; width /= 2, mask ^= mask << width) {
        for (int i = 0; i < 64; i = ((i | width) + 1) & ~width) {
            const uint64_t swap = ((words[i] >> width) ^ words[i | width]) & mask;
            words[i] ^= swap << width;
            words[i | width] ^= swap;
        }
    }
}

template <class A>
void transpose_tile(const TileTranspose<A>& given) {
    const TileTranspose<A> work = given;
    const int64_t row_bytes = work.tile_size / 8;
    const int shift = static_cast<int>(64 - work.tile_size);
    uint64_t rows[64] = {};
    uint64_t columns[64];
    for (int64_t r = 0; r < work.tile_size; ++r) {
        uint64_t word;
        std::memcpy(&word, work.bits + (r + 1) * row_bytes - 8, 8);
        rows[r] = word >> shift;
    }
    std::memcpy(columns, rows, sizeof(rows));
    transpose_bits(columns);
    int32_t place[64];
    int32_t filled = 0;
    for (int64_t c = 0; c < work.tile_size; ++c) {
        place[c] = filled;
        work.row_offset_t[c] = static_cast<int16_t>(filled);
        filled += __builtin_popcountll(columns[c]);
        std::memcpy(work.bits_t + c * row_bytes, &columns[c], static_cast<size_t>(row_bytes));
    }
    uint16_t column[64 * 64 + kListSlack];
    int64_t count = 0;
    for (int64_t r = 0; r < work.tile_size; ++r) count += append_positions<1>(rows[r], 0, column + count);
    for (int64_t i = 0; i < count; ++i) work.values_t[place[column[i]]++] = work.values[i];
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
