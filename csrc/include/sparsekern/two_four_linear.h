// y = x W^T + b with W packed 2:4 (see two_four.h), and its two gradients, on the CPU.
#pragma once

#include <cstdint>

#include "sparsekern/dtype.h"
#include "sparsekern/linear.h"
#include "sparsekern/two_four.h"

namespace sparsekern {

// A packed weight of `rows` rows and `cols` columns, a multiple of 4: cols / 2 values and
// metadata_bytes(cols) bytes of metadata for each row, without gaps. Any metadata is safe: a column that it
// names is always one of its group's four.
template <class Pointer>
struct TwoFourMatrix {
    Values<Pointer> values;
    Values<const unsigned char*> metadata;
    int64_t rows;
    int64_t cols;
};
using TwoFourWeight = TwoFourMatrix<const void*>;
using TwoFourGradient = TwoFourMatrix<void*>;

// All throw std::invalid_argument when a size does not fit. Results have the same bits for any `threads`.

// y (m, rows) = x (m, cols) W^T + bias (rows, or data null).
void two_four_linear(DType dtype, const TwoFourWeight& weight, InputMatrix x, InputValues bias,
                     OutputMatrix y, int threads);

// grad_x (m, cols) = grad_y (m, rows) W.
void two_four_linear_grad_input(DType dtype, const TwoFourWeight& weight, InputMatrix grad_y,
                                OutputMatrix grad_x, int threads);

// The values of grad = grad_y^T x at the columns that its metadata names.
void two_four_linear_grad_values(DType dtype, InputMatrix grad_y, InputMatrix x, const TwoFourGradient& grad,
                                 int threads);

// W of int8, with a float32 scale for each row.
struct TwoFourInt8Weight {
    TwoFourWeight weight;
    Values<const float*> scale;
};

// y (m, rows) = sum(q W) * (s * scale) + bias, of float32 or bfloat16 x and y and float32 or bfloat16 bias of
// the same type, where q = clamp(round(x / s), -127, 127), rounded half to even. s is `x_scale`, or where
// that is null the largest |x| of each row divided by 127, and 1 for a row of zeros. Sums are exact, all else
// is float32, and every instruction set gives the same bits. A row of x that holds NaN gives NaN.
void two_four_linear_int8(DType dtype, const TwoFourInt8Weight& weight, InputMatrix x, const float* x_scale,
                          InputValues bias, OutputMatrix y, int threads);

}  // namespace sparsekern
