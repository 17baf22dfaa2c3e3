#include "conv2d_check.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>

namespace sparsekern {

namespace {

void check_at_least(const char* name, int64_t least, int64_t got) {
    if (got >= least) return;
    throw std::invalid_argument(std::string(name) + ": expected at least " + std::to_string(least) +
                                ", got " + std::to_string(got));
}

// Up to the largest number that a pattern's sizes may have, so that the places of pixels fit 64 bits.
void check_at_most(const char* name, int64_t got) {
    if (got <= std::numeric_limits<int32_t>::max()) return;
    throw std::invalid_argument(std::string(name) + ": expected at most 2147483647, got " +
                                std::to_string(got));
}

// The elements of a tensor of these sizes.
int64_t elements_of(const char* name, std::initializer_list<int64_t> sizes) {
    if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return 0;
    int64_t elements = 1;
    for (const int64_t size : sizes) {
        if (__builtin_mul_overflow(elements, size, &elements) || elements > kMostElements) {
            throw std::invalid_argument(std::string(name) + ": expected at most 2^48 elements");
        }
    }
    return elements;
}

}  // namespace

void check_conv2d_sizes(const PatternView& pattern, const Conv2dShape& shape, const char* x_name,
                        int64_t x_count, const char* y_name, int64_t y_count, int threads) {
    check_threads(threads);
    check_equal("pattern", "dimensions", 4, pattern.dims);
    check_at_least("batch", 0, shape.batch);
    check_at_least("groups", 1, shape.groups);
    check_at_least("height", 0, shape.height);
    check_at_least("width", 0, shape.width);
    for (int axis = 0; axis < 2; ++axis) {
        check_at_least("stride", 1, shape.stride[axis]);
        check_at_least("padding", 0, shape.padding[axis]);
        check_at_least("dilation", 1, shape.dilation[axis]);
        check_at_most("stride", shape.stride[axis]);
        check_at_most("padding", shape.padding[axis]);
        check_at_most("dilation", shape.dilation[axis]);
    }
    check_at_most("height", shape.height);
    check_at_most("width", shape.width);
    if (pattern.rows % shape.groups != 0) {
        throw std::invalid_argument("groups: expected a divisor of the output channels " +
                                    std::to_string(pattern.rows) + ", got " + std::to_string(shape.groups));
    }
    const int64_t out_height = shape.out_extent(0, pattern.kh), out_width = shape.out_extent(1, pattern.kw);
    const int64_t x_elements =
        elements_of(x_name, {shape.batch, shape.groups, pattern.cin, shape.height, shape.width});
    check_equal(x_name, "elements", x_elements, x_count);
    check_equal(y_name, "elements", elements_of(y_name, {shape.batch, pattern.rows, out_height, out_width}),
                y_count);
}

}  // namespace sparsekern
