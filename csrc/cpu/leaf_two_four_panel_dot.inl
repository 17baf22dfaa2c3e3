// The gradient of the values of a 2:4 weight on panels: for each value the dot product of its row's and its
// column's run of samples.

#include "two_four_kernels.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// A vector whose lane i is the sum of the lanes of product(First + i * Stride): halves of them, each by
// itself, and then one shuffle and sum for both. In this order few of them wait in registers.
template <class A, int First, int Stride, int Count, class Product>
inline Vec<A> sums_of(const Product& product) {
    if constexpr (Count == 1) {
        return product(First);
    } else {
        const Vec<A> even = sums_of<A, First, 2 * Stride, Count / 2>(product);
        const Vec<A> odd = sums_of<A, First + Stride, 2 * Stride, Count / 2>(product);
        return interleave_low(even, odd) + interleave_high(even, odd);
    }
}

// Row r of a gradient against one panel.
template <class A, int V>
class RowDots {
    static constexpr int64_t kWidth = V * kLanes<A>;
    static constexpr int kLanesInt = static_cast<int>(kLanes<A>);

public:
    explicit RowDots(const A* y) {
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) row_[j] = load<A>(y + j * kLanes<A>);
    }

    // A vector of values, whose columns are those of `columns` from x on.
    Vec<A> whole(uint32_t columns, const A* x) const {
        return sums_of<A, 0, 1, kLanesInt>([&](int i) { return product(columns, i, x); });
    }
    // The first `count` of them.
    Vec<A> part(uint32_t columns, const A* x, int count) const {
        return sums_of<A, 0, 1, kLanesInt>(
            [&](int i) { return i < count ? product(columns, i, x) : Vec<A>{}; });
    }

private:
    Vec<A> product(uint32_t columns, int i, const A* x) const {
        const A* const run = x + (i / 2 * 4 + static_cast<int64_t>(columns >> 2 * i & 3)) * kWidth;
        Vec<A> sum = row_[0] * load<A>(run);
#pragma GCC unroll 8
        for (int j = 1; j < V; ++j) sum += row_[j] * load<A>(run + j * kLanes<A>);
        return sum;
    }

    Vec<A> row_[V];
};

// The bytes of metadata that name a vector of columns, or more.
template <class A>
constexpr int64_t kMetadataBytes = kLanes<A> < 4 ? 1 : kLanes<A> / 4;

template <class A>
inline uint32_t columns_at(const unsigned char* metadata, int64_t value, int64_t bytes) {
    uint32_t columns = 0;
    std::memcpy(&columns, metadata + value / 4, static_cast<size_t>(bytes));
    return columns >> value % 4 * 2;
}

template <class A, int V>
void dot_panel(const PanelDotWork<A>& given, bool fresh) {
    constexpr int64_t lanes = kLanes<A>;
    const PanelDotWork<A> work = given;
    const int64_t values = work.block.columns / 2;
    for (int64_t r = 0; r < work.block.rows; ++r) {
        const RowDots<A, V> dots(work.y + r * V * lanes);
        const unsigned char* metadata = work.block.metadata + r * work.block.metadata_stride;
        A* const out = work.out + r * work.pitch;
        int64_t i = 0;
        for (; i + lanes <= values; i += lanes) {
            const Vec<A> sums =
                dots.whole(columns_at<A>(metadata, i, kMetadataBytes<A>), work.x + i * 2 * V * lanes);
            store<A>(out + i, fresh ? sums : sums + load<A>(out + i));
        }
        const int64_t rest = values - i;
        if (rest == 0) continue;
        const Vec<A> sums = dots.part(columns_at<A>(metadata, i, (rest + 3) / 4), work.x + i * 2 * V * lanes,
                                      static_cast<int>(rest));
        store_first(out + i, fresh ? sums : sums + load_range(out + i, 0, rest), rest);
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
