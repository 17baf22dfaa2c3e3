#include "conv2d_check.h"

#include <stdexcept>
#include <string>

namespace sparsekern {

namespace {

void check_at_least(const char* name, int64_t least, int64_t got) {
    if (got >= least) return;
    throw std::invalid_argument(std::string(name) + ": expected at least " + std::to_string(least) +
                                ", got " + std::to_string(got));
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
    }
    if (pattern.rows % shape.groups != 0) {
        throw std::invalid_argument("groups: expected a divisor of the output channels " +
                                    std::to_string(pattern.rows) + ", got " + std::to_string(shape.groups));
    }
    const int64_t out = shape.out_extent(0, pattern.kh) * shape.out_extent(1, pattern.kw);
    check_equal(x_name, "elements", shape.batch * shape.groups * pattern.cin * shape.height * shape.width,
                x_count);
    check_equal(y_name, "elements", shape.batch * pattern.rows * out, y_count);
}

}  // namespace sparsekern
