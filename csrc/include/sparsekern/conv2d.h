// y = conv2d(x, W) + b with W on a pattern, and its two gradients, on the CPU. Images are contiguous NCHW.
#pragma once

#include <cstdint>

#include "sparsekern/dtype.h"
#include "sparsekern/linear.h"
#include "sparsekern/pattern.h"

namespace sparsekern {

struct Conv2dShape {
    int64_t batch;
    int64_t groups;
    int64_t height;
    int64_t width;
    int64_t stride[2];
    int64_t padding[2];
    int64_t dilation[2];

    // Output extent along `axis` (0 vertical, 1 horizontal) for a kernel of `kernel` taps.
    int64_t out_extent(int axis, int64_t kernel) const {
        const int64_t extent = axis == 0 ? height : width;
        const int64_t reach = extent + 2 * padding[axis] - dilation[axis] * (kernel - 1) - 1;
        return reach < 0 ? 0 : reach / stride[axis] + 1;
    }
};

// All throw std::invalid_argument when a size does not fit. Results have the same bits for any `threads`.

// y (batch, rows, out_height, out_width) from x (batch, groups * cin, height, width).
void conv2d(DType dtype, const PatternView& pattern, const Conv2dShape& shape, InputValues values,
            InputValues x, InputValues bias, OutputValues y, int threads);

void conv2d_grad_input(DType dtype, const PatternView& pattern, const Conv2dShape& shape, InputValues values,
                       InputValues grad_y, OutputValues grad_x, int threads);

void conv2d_grad_values(DType dtype, const PatternView& pattern, const Conv2dShape& shape, InputValues grad_y,
                        InputValues x, OutputValues grad_values, int threads);

}  // namespace sparsekern
