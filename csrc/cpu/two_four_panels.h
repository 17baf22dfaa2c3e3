// The rows of a 2:4 weight for a PanelProduct.
#pragma once

#include <algorithm>
#include <cstdint>

#include "panels.h"
#include "tile_schedule.h"
#include "two_four_kernels.h"

namespace sparsekern {

template <class T>
class TwoFourPanels {
    using A = AccumulateType<T>;

public:
    // `start` may be null.
    TwoFourPanels(const TwoFourRows<T>& all, const A* start, const PanelShape& shape)
        : all_(all),
          start_(start),
          width_(shape.width),
          accumulate_(two_four_kernels<T>().accumulate[width_ / kernels<A>().lanes]) {}

    int64_t rows() const { return all_.rows; }
    int64_t cols() const { return all_.columns; }
    int64_t unit() const { return 64; }

    // Columns in blocks whose features the nearest cache holds while all rows read them. A block's products
    // are summed on their own: one long chain of additions would lose digits.
    void sum(const A* features, int64_t begin, int64_t end, A* sums) const {
        const int64_t near = kNearCacheBytes / (width_ * static_cast<int64_t>(sizeof(A))) / 8 * 8;
        const A* const start = start_ != nullptr ? start_ + begin : nullptr;
        int64_t column = 0;
        do {
            const int64_t columns = std::min(near, all_.columns - column);
            accumulate_({all_.block(begin, end - begin, column, columns), features + column * width_, sums},
                        column == 0, start);
            column += columns;
        } while (column < all_.columns);
    }

private:
    TwoFourRows<T> all_;
    const A* start_;
    int64_t width_;
    void (*accumulate_)(const TwoFourPanelWork<T>&, bool fresh, const A* start);
};

}  // namespace sparsekern
