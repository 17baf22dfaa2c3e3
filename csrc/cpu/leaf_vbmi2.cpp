// The kernels that gain from AVX-512 VBMI2 (Ice Lake and Zen 4 onwards), which turns a word's bits into the
// list of their positions at once.
#define SPARSEKERN_ISA avx512_vbmi2
#define SPARSEKERN_VECTOR_BYTES 64

// GCC 12 takes the undefined operands that its own intrinsics start from for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "leaf_narrow.inl"
#include "leaf_transpose.inl"

namespace sparsekern {
namespace avx512_vbmi2 {
namespace {

constexpr int64_t kLanes = 16;

// The expansion of `packed` to the lanes that `mask` names (see compress_bytes).
inline __m512 expand(__mmask16 mask, __m512 packed) {
    __m512 to = _mm512_setzero_ps();
    asm("" : "+v"(to));
    return _mm512_mask_expand_ps(to, mask, packed);
}

// One sample's features of a tile of 64 columns, in registers.
class TileFeatures {
public:
    explicit TileFeatures(const float* x)
        : x_{_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16), _mm512_loadu_ps(x + 32), _mm512_loadu_ps(x + 48)} {}

    // The features that the bytes of `positions` name.
    __m512 at(__m128i positions) const {
        const __m512i lane = _mm512_cvtepu8_epi32(positions);
        const __m512 low = _mm512_permutex2var_ps(x_[0], lane, x_[1]);
        const __m512 high = _mm512_permutex2var_ps(x_[2], lane, x_[3]);
        return _mm512_mask_blend_ps(_mm512_test_epi32_mask(lane, _mm512_set1_epi32(32)), low, high);
    }

private:
    __m512 x_[4];
};

// A tile's values, with a vector behind them that may be read too.
class TileValues {
public:
    const float* of(const TileMatrix& m, const float* values, int64_t tile) {
        const float* const from = values + m.tile_start[tile];
        const int64_t count = m.tile_start[tile + 1] - m.tile_start[tile];
        if (all_values_end(m, values) - (from + count) >= kLanes) return from;
        std::memcpy(copy_, from, static_cast<size_t>(count) * sizeof(float));
        return copy_;
    }

private:
    float copy_[64 * 64 + kLanes];
};

// Calls use(features, live, at) for each 16 of `count` nonzeros, `at` counting them from 0; `live` says which
// lanes are nonzeros.
template <class Use>
inline void each_sixteen(__m512i positions, int64_t count, const TileFeatures& x, const Use& use) {
    for (int64_t at = 0;; at += kLanes) {
        const int64_t left = count - at;
        const auto live = static_cast<__mmask16>(left >= kLanes ? 0xFFFF : (1u << left) - 1);
        use(x.at(_mm512_castsi512_si128(positions)), live, at);
        if (left <= kLanes) return;
        positions = compress_bytes(~uint64_t{0xFFFF}, positions);
    }
}

// narrow_product for one sample. A row's sum stays spread over 16 lanes until its last tile.
void single_product(const NarrowWork<float>& given, const float* values, bool fresh, const float* start) {
    const NarrowWork<float> work = given;
    const TileMatrix m = *work.matrix;
    if (m.tile_size != 64) return narrow_product<float, 1>(work, values, fresh, start);
    alignas(64) float sums[64][kLanes] = {};
    TileValues tile_values;
    for (int64_t i = 0; i < work.tile_count; ++i) {
        const int64_t tile = work.first_tile + i;
        const RowWords words(m, tile);
        const TileFeatures x(work.x + work.column[i]);
        const float* value = tile_values.of(m, values, tile);
        for (int64_t r = 0; r < work.rows; ++r) {
            const uint64_t bits = words(0, r);
            const int64_t count = __builtin_popcountll(bits);
            __m512 sum = _mm512_load_ps(sums[r]);
            // A masked addition would end in a masked store, which the next tile's load would wait for.
            each_sixteen(positions_of(bits), count, x, [&](__m512 feature, __mmask16 live, int64_t at) {
                const __m512 products = _mm512_maskz_mul_ps(live, _mm512_loadu_ps(value + at), feature);
                sum = _mm512_add_ps(sum, products);
            });
            _mm512_store_ps(sums[r], sum);
            value += count;
        }
    }
    for (int64_t r = 0; r < work.rows; ++r) {
        const float before = fresh ? (start != nullptr ? start[r] : 0.0f) : work.y[r];
        work.y[r] = before + sum_lanes<float>(load<float>(sums[r]));
    }
}

// single_transposed for tiles that are not nearly empty: the sums stay in registers, and a row's values are
// spread to its columns.
void spread_transposed(const NarrowWork<float>& given, const float* values) {
    const NarrowWork<float> work = given;
    const TileMatrix m = *work.matrix;
    const int64_t count = m.tile_start[work.first_tile + 1] - m.tile_start[work.first_tile];
    if (m.tile_size != 64 || count < 64) return single_transposed<float>(work, values);
    const RowWords words(m, work.first_tile);
    TileValues tile_values;
    const float* value = tile_values.of(m, values, work.first_tile);
    __m512 sum[4];
    for (int q = 0; q < 4; ++q) sum[q] = _mm512_loadu_ps(work.y + q * kLanes);
    for (int64_t r = 0; r < work.rows; ++r) {
        const __m512 x = _mm512_set1_ps(work.x[r]);
        uint64_t bits = words(0, r);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
            const auto live = static_cast<__mmask16>(bits >> q * 16);
            sum[q] = _mm512_mask3_fmadd_ps(expand(live, _mm512_loadu_ps(value)), x, sum[q], live);
            value += __builtin_popcount(live);
        }
    }
    for (int q = 0; q < 4; ++q) _mm512_storeu_ps(work.y + q * kLanes, sum[q]);
}

// narrow_dot for one sample.
void single_dot(const NarrowWork<float>& given, float* values_gradient) {
    const NarrowWork<float> work = given;
    const TileMatrix m = *work.matrix;
    if (m.tile_size != 64) return narrow_dot<float, 1>(work, values_gradient);
    const RowWords words(m, work.first_tile);
    const TileFeatures x(work.x);
    float* out = values_gradient + m.tile_start[work.first_tile];
    for (int64_t r = 0; r < work.rows; ++r) {
        const uint64_t bits = words(0, r);
        const int64_t count = __builtin_popcountll(bits);
        const __m512 y = _mm512_set1_ps(work.y[r]);
        each_sixteen(positions_of(bits), count, x, [&](__m512 feature, __mmask16 live, int64_t at) {
            _mm512_mask_storeu_ps(out + at, live, _mm512_mul_ps(y, feature));
        });
        out += count;
    }
}

}  // namespace

void improve(KernelTable<float>& table) {
    set_narrow<float, 0>(table);
    table.narrow_product[0] = single_product;
    table.narrow_transposed[0] = spread_transposed;
    table.narrow_dot[0] = single_dot;
    table.transpose_tile = transpose_tile<float>;
}
void improve(KernelTable<double>& table) {
    set_narrow<double, 0>(table);
    table.transpose_tile = transpose_tile<double>;
}

}  // namespace avx512_vbmi2
}  // namespace sparsekern
