// y = x W^T + b with W on a pattern, and its two gradients, on the CPU.
#pragma once

#include <cstdint>

#include "sparsekern/dtype.h"
#include "sparsekern/pattern.h"

namespace sparsekern {

// A matrix anywhere in memory. `count` elements follow `data`; every element the strides reach is checked
// against it.
template <class Pointer>
struct Matrix {
    Pointer data;
    int64_t count;
    int64_t rows;
    int64_t cols;
    int64_t row_stride;
    int64_t col_stride;
};
using InputMatrix = Matrix<const void*>;
using OutputMatrix = Matrix<void*>;

// The nnz values of a pattern, or a gradient of them.
template <class Pointer>
struct Values {
    Pointer data;
    int64_t count;
};
using InputValues = Values<const void*>;
using OutputValues = Values<void*>;

// All throw std::invalid_argument when a size does not fit. Results have the same bits for any `threads`.

// y (m, rows) = x (m, cols) W^T + bias (rows, or data null).
void linear(DType dtype, const PatternView& pattern, InputValues values, InputMatrix x, InputValues bias,
            OutputMatrix y, int threads);

// grad_x (m, cols) = grad_y (m, rows) W.
void linear_grad_input(DType dtype, const PatternView& pattern, InputValues values, InputMatrix grad_y,
                       OutputMatrix grad_x, int threads);

// grad_values (nnz) = (grad_y^T x) at the active positions.
void linear_grad_values(DType dtype, const PatternView& pattern, InputMatrix grad_y, InputMatrix x,
                        OutputValues grad_values, int threads);

}  // namespace sparsekern
