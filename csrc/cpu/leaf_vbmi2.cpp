// The kernels that gain from AVX-512 VBMI2 (Ice Lake and Zen 4 onwards), which turns a word's bits into the
// list of their positions at once.
#define SPARSEKERN_ISA avx512_vbmi2
#define SPARSEKERN_VECTOR_BYTES 64

// GCC 12 takes the undefined operands that its own intrinsics start from for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "leaf_narrow.inl"

namespace sparsekern {
namespace avx512_vbmi2 {
namespace {

// One sample's features of a tile of 64 columns, in registers.
class TileFeatures {
public:
    explicit TileFeatures(const float* x)
        : x_{_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16), _mm512_loadu_ps(x + 32), _mm512_loadu_ps(x + 48)} {}

    // The features that the first 16 bytes of `positions` name.
    __m512 at(__m512i positions) const {
        const __m512i lane = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(positions));
        const __m512 low = _mm512_permutex2var_ps(x_[0], lane, x_[1]);
        const __m512 high = _mm512_permutex2var_ps(x_[2], lane, x_[3]);
        return _mm512_mask_blend_ps(_mm512_test_epi32_mask(lane, _mm512_set1_epi32(32)), low, high);
    }

private:
    __m512 x_[4];
};

// Calls use(features, live, at) for each 16 of a row's nonzeros, `at` counting them from 0; `live` says which
// lanes are nonzeros. Returns how many there are.
template <class Use>
inline int64_t each_sixteen(uint64_t bits, const TileFeatures& x, const Use& use) {
    const int64_t count = __builtin_popcountll(bits);
    __m512i positions = positions_of(bits);
    for (int64_t at = 0;; at += 16) {
        const int64_t left = count - at;
        use(x.at(positions), static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1u << left) - 1), at);
        if (left <= 16) return count;
        positions = _mm512_maskz_compress_epi8(~uint64_t{0xFFFF}, positions);
    }
}

// narrow_product for one sample and tiles of 64. A row's own columns fill the vector; its sum stays spread
// over 16 lanes until its last tile.
void single_product(const NarrowWork<float>& given, const float* values, bool fresh, const float* start) {
    const NarrowWork<float> work = given;
    const TileMatrix m = *work.matrix;
    if (m.tile_size != 64) return narrow_product<float, 1>(work, values, fresh, start);
    alignas(64) float sums[64][16] = {};
    for (int64_t i = 0; i < work.tile_count; ++i) {
        const int64_t tile = work.first_tile + i;
        const RowWords words(m, tile);
        const TileFeatures x(work.x + work.column[i]);
        const float* value = values + m.tile_start[tile];
        for (int64_t r = 0; r < work.rows; ++r) {
            __m512 sum = _mm512_load_ps(sums[r]);
            __builtin_prefetch(value + 1024, 0, 2);
            value += each_sixteen(words.ahead(0, r, 4), x, [&](__m512 feature, __mmask16 live, int64_t at) {
                sum = _mm512_add_ps(
                    sum, _mm512_maskz_mul_ps(live, _mm512_maskz_loadu_ps(live, value + at), feature));
            });
            _mm512_store_ps(sums[r], sum);
        }
    }
    for (int64_t r = 0; r < work.rows; ++r) {
        const float before = fresh ? (start != nullptr ? start[r] : 0.0f) : work.y[r];
        work.y[r] = before + sum_lanes<float>((FloatVec)_mm512_load_ps(sums[r]));
    }
}

// narrow_dot for one sample and tiles of 64.
void single_dot(const NarrowWork<float>& given, float* values_gradient) {
    const NarrowWork<float> work = given;
    const TileMatrix m = *work.matrix;
    if (m.tile_size != 64) return narrow_dot<float, 1>(work, values_gradient);
    const RowWords words(m, work.first_tile);
    const TileFeatures x(work.x);
    float* out = values_gradient + m.tile_start[work.first_tile];
    for (int64_t r = 0; r < work.rows; ++r) {
        const __m512 y = _mm512_set1_ps(work.y[r]);
        out += each_sixteen(words.ahead(0, r, 4), x, [&](__m512 feature, __mmask16 live, int64_t at) {
            _mm512_mask_storeu_ps(out + at, live, _mm512_mul_ps(y, feature));
        });
    }
}

}  // namespace

void improve(KernelTable<float>& table) {
    set_narrow<float, 0>(table);
    table.narrow_product[0] = single_product;
    table.narrow_dot[0] = single_dot;
}
void improve(KernelTable<double>& table) { set_narrow<double, 0>(table); }

}  // namespace avx512_vbmi2
}  // namespace sparsekern
