// What the three products of a convolution check, and decide, before they begin.
#pragma once

#include <cstdint>

#include "check.h"
#include "panels.h"
#include "sparsekern/conv2d.h"

namespace sparsekern {

// Throws unless the weight, the geometry and the element counts of x and y fit one another.
void check_conv2d_sizes(const PatternView& pattern, const Conv2dShape& shape, const char* x_name,
                        int64_t x_count, const char* y_name, int64_t y_count, int threads);

// The same, and the buffers are there.
template <class X, class Y>
void check_conv2d(const PatternView& pattern, const Conv2dShape& shape, const char* x_name, const X& x,
                  const char* y_name, const Y& y, int64_t element_bytes, int threads) {
    check_conv2d_sizes(pattern, shape, x_name, x.count, y_name, y.count, threads);
    check_values(x_name, x, x.count, element_bytes);
    check_values(y_name, y, y.count, element_bytes);
}

// The threads that one of the three products is worth.
inline int conv2d_threads(const PatternView& pattern, int64_t x_count, int64_t y_count, int threads) {
    const auto pixels = static_cast<double>(y_count / pattern.rows);
    return worthwhile_threads(threads, pixels * static_cast<double>(pattern.nnz),
                              static_cast<double>(x_count) + static_cast<double>(y_count));
}

// The same convolution with an image's pixels in one row, where it is a matrix product.
inline Conv2dShape flattened(const PatternView& pattern, Conv2dShape shape) {
    const bool pointwise = pattern.kh == 1 && pattern.kw == 1 && shape.stride[0] == 1 &&
                           shape.stride[1] == 1 && shape.padding[0] == 0 && shape.padding[1] == 0;
    if (!pointwise) return shape;
    shape.width *= shape.height;
    shape.height = 1;
    return shape;
}

}  // namespace sparsekern
