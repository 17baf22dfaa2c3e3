// The gradient of a few samples: each row's values are spread to their columns, and added to sums that stay
// in the nearest cache. AVX-512 only.

#include "leaf_two_four_columns.inl"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Rows whose products are added at a time; two masks for each fit the mask registers.
constexpr int kSpreadRows = 3;

inline FloatVec add_masked(uint32_t mask, FloatVec a, FloatVec b, FloatVec sum) {
    return (FloatVec)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)sum, static_cast<__mmask16>(mask));
}
inline DoubleVec add_masked(uint32_t mask, DoubleVec a, DoubleVec b, DoubleVec sum) {
    return (DoubleVec)_mm512_mask3_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum,
                                            static_cast<__mmask8>(mask));
}

// As column_masks for 16 bytes.
inline void column_masks(const unsigned char* metadata, int64_t bytes, unsigned char (&masks)[64]) {
    const __mmask64 live = bytes >= 64 ? ~__mmask64{0} : (__mmask64{1} << bytes) - 1;
    const __m512i given = _mm512_maskz_loadu_epi8(live, metadata);
    const __m512i table = _mm512_broadcast_i32x4(mask_of_nibble());
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i first = _mm512_shuffle_epi8(table, _mm512_and_si512(given, nibble));
    const __m512i second = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(given, 4), nibble));
    _mm512_storeu_si512(masks, _mm512_or_si512(first, _mm512_slli_epi16(second, 4)));
}

template <class T, int M>
class SpreadRows {
    using A = AccumulateType<T>;
    static constexpr int64_t kColumns = 2 * kLanes<A>;

public:
    // Rows from `first` on; those missing at the end keep nothing.
    SpreadRows(const SpreadWork<T>& work, int64_t first) {
        for (int i = 0; i < kSpreadRows; ++i) {
            const int64_t row = first + i;
            const bool there = row < work.block.rows;
            const int64_t place = there ? row : first;
            values_[i] = work.block.values + place * work.block.value_stride;
            y_[i] = work.y + place * M;
            const int64_t bytes = there ? (work.block.columns + 7) / 8 : 0;
            column_masks(work.block.metadata + place * work.block.metadata_stride, bytes, masks_[i]);
        }
        ahead_ = kSpreadRows * work.block.value_stride;
    }

    void add(int64_t columns, A* sums, int64_t pitch) const {
        int64_t column = 0;
        for (; column + kColumns <= columns; column += kColumns) {
            for (int i = 0; i < kSpreadRows; ++i) {
                __builtin_prefetch(values_[i] + column / 2 + ahead_, 0, 2);
            }
            add_columns(column, sums + column, pitch, [](const T* from) { return load_as(from); });
        }
        const int64_t rest = (columns - column) / 2;
        if (rest == 0) return;
        add_columns(column, sums + column, pitch,
                    [&](const T* from) { return load_range_as(from, 0, rest); });
    }

private:
    // Each half of a vector of values goes to a vector of columns.
    template <class Load>
    void add_columns(int64_t column, A* sums, int64_t pitch, const Load& load_values) const {
        uint32_t mask[kSpreadRows][2];
        Vec<A> row[kSpreadRows][2];
#pragma GCC unroll 4
        for (int i = 0; i < kSpreadRows; ++i) {
            const Vec<A> values = load_values(values_[i] + column / 2);
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                mask[i][half] = mask_of(i, column + half * kLanes<A>);
                row[i][half] = expand(mask[i][half], half == 0 ? values : upper_half(values));
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            A* const to = sums + m * pitch;
            Vec<A> sum[2] = {load<A>(to), load<A>(to + kLanes<A>)};
#pragma GCC unroll 4
            for (int i = 0; i < kSpreadRows; ++i) {
                const Vec<A> y = broadcast<A>(y_[i][m]);
                sum[0] = add_masked(mask[i][0], row[i][0], y, sum[0]);
                sum[1] = add_masked(mask[i][1], row[i][1], y, sum[1]);
            }
            store<A>(to, sum[0]);
            store<A>(to + kLanes<A>, sum[1]);
        }
    }

    uint32_t mask_of(int row, int64_t column) const {
        if (kLanes<A> == 8) return masks_[row][column / 8];
        uint16_t mask;
        std::memcpy(&mask, masks_[row] + column / 8, sizeof(mask));
        return mask;
    }
    static FloatVec upper_half(FloatVec v) {
        return (FloatVec)_mm512_shuffle_f32x4((__m512)v, (__m512)v, 0xEE);
    }
    static DoubleVec upper_half(DoubleVec v) {
        return (DoubleVec)_mm512_shuffle_f64x2((__m512d)v, (__m512d)v, 0xEE);
    }

    const T* values_[kSpreadRows];
    const A* y_[kSpreadRows];
    unsigned char masks_[kSpreadRows][kSpreadColumns / 8];
    int64_t ahead_;
};

template <class T, int M>
void spread(const SpreadWork<T>& given) {
    const SpreadWork<T> work = given;
    for (int64_t r = 0; r < work.block.rows; r += kSpreadRows) {
        SpreadRows<T, M>(work, r).add(work.block.columns, work.sums, work.pitch);
    }
}

template <class T, int M>
void set_spread(TwoFourKernels<T>& table) {
    table.spread[M] = spread<T, M>;
    if constexpr (M < kFewSamples) set_spread<T, M + 1>(table);
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
