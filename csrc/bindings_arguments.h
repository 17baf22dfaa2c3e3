// Arguments as Python hands them over, addresses with element counts, as the kernels take them.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "sparsekern/dtype.h"
#include "sparsekern/linear.h"
#include "sparsekern/pattern.h"

using Address = uintptr_t;
using ReleaseGil = pybind11::call_guard<pybind11::gil_scoped_release>;

inline sparsekern::PatternView view(Address data, int64_t words) {
    return sparsekern::PatternView::parse(reinterpret_cast<const int32_t*>(data), words);
}

inline sparsekern::DType dtype_of(int dtype) {
    if (dtype < 0 || dtype > static_cast<int>(sparsekern::DType::bfloat16)) {
        throw std::invalid_argument("dtype: expected 0 (float32), 1 (float64) or 2 (bfloat16), got " +
                                    std::to_string(dtype));
    }
    return static_cast<sparsekern::DType>(dtype);
}

inline sparsekern::InputValues input(Address data, int64_t count) {
    return {reinterpret_cast<const void*>(data), count};
}
inline sparsekern::OutputValues output(Address data, int64_t count) {
    return {reinterpret_cast<void*>(data), count};
}

inline sparsekern::InputMatrix input(Address data, int64_t count, int64_t rows, int64_t cols,
                                     int64_t row_stride, int64_t col_stride) {
    return {reinterpret_cast<const void*>(data), count, rows, cols, row_stride, col_stride};
}

// Results are contiguous: the caller has just allocated them.
inline sparsekern::OutputMatrix output(Address data, int64_t count, int64_t rows, int64_t cols) {
    return {reinterpret_cast<void*>(data), count, rows, cols, cols, 1};
}
