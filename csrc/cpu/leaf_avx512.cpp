#define SPARSEKERN_ISA avx512
#define SPARSEKERN_VECTOR_BYTES 64

// GCC 12 takes the undefined operands that its own intrinsics start from for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "leaf_table.inl"

namespace sparsekern {
namespace avx512 {

// vector_product for tiles of 64. The columns of a row's bits are gathered into consecutive lanes, so up to
// 16 of its values cost one multiplication; a row's sum stays spread over 16 lanes until its last tile.
__attribute__((target("avx512vbmi,avx512vbmi2"))) void vector_product_vbmi2(const PanelWork<float>& given,
                                                                            const float* values,
                                                                            const float* start) {
    const PanelWork<float> work = given;
    const TileMatrix m = *work.matrix;
    if (m.tile_size != 64) return vector_product<float>(work, values, start);
    alignas(64) uint8_t identity[64];
    for (int c = 0; c < 64; ++c) identity[c] = static_cast<uint8_t>(c);
    const __m512i columns = _mm512_load_si512(identity);
    const __m512i upper_half = _mm512_set1_epi32(32);
    alignas(64) float sums[64][16] = {};
    for (int64_t i = 0; i < work.tile_count; ++i) {
        const int64_t tile = work.tiles[i];
        const float* value = values + m.tile_start[tile];
        const float* x = work.x + m.tile_col[tile] * 64;
        const __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
        const __m512 x2 = _mm512_loadu_ps(x + 32), x3 = _mm512_loadu_ps(x + 48);
        for (int64_t r = 0; r < work.rows; ++r) {
            uint64_t bits;
            std::memcpy(&bits, m.bits + (tile * 64 + r) * 8, 8);
            int left = __builtin_popcountll(bits);
            __m512i index = _mm512_maskz_compress_epi8(bits, columns);
            __m512 sum = _mm512_load_ps(sums[r]);
            for (;; left -= 16) {
                const __m512i lane = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(index));
                const __m512 low = _mm512_permutex2var_ps(x0, lane, x1);
                const __m512 high = _mm512_permutex2var_ps(x2, lane, x3);
                const __m512 feature =
                    _mm512_mask_blend_ps(_mm512_test_epi32_mask(lane, upper_half), low, high);
                const __mmask16 live = left >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
                sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(live, value), feature, sum);
                if (left <= 16) break;
                value += 16;
                index = _mm512_maskz_compress_epi8(~uint64_t{0xFFFF}, index);
            }
            value += left;
            _mm512_store_ps(sums[r], sum);
        }
    }
    for (int64_t r = 0; r < work.rows; ++r) {
        const float first = start != nullptr ? start[r] : 0.0f;
        work.y[r * work.y_stride] = first + sum_lanes<float>(_mm512_load_ps(sums[r]));
    }
}

KernelTable<float> vbmi2_float_table() {
    KernelTable<float> table = float_table();
    table.vector_product = vector_product_vbmi2;
    return table;
}

}  // namespace avx512
}  // namespace sparsekern
