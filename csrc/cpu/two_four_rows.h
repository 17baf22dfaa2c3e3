// A packed 2:4 weight as the products take it: checked, and as typed rows.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "check.h"
#include "sparsekern/two_four_linear.h"
#include "two_four_kernels.h"

namespace sparsekern {

// Sizes of a matrix may come from outside, and what is computed from them must fit.
template <class Pointer>
void check_two_four(const char* name, const TwoFourMatrix<Pointer>& m, int64_t element_bytes) {
    if (m.rows < 0) {
        throw std::invalid_argument("rows: expected at least 0, got " + std::to_string(m.rows));
    }
    if (m.cols < 0 || m.cols % kGroupSize != 0) {
        throw std::invalid_argument("columns: expected a multiple of 4, got " + std::to_string(m.cols));
    }
    if (m.rows > kMostElements) {
        throw std::invalid_argument("rows: expected at most 2^48, got " + std::to_string(m.rows));
    }
    if (m.cols > kMostElements || static_cast<__int128>(m.rows) * m.cols > kMostElements) {
        throw std::invalid_argument("rows and columns: expected at most 2^48 elements, got " +
                                    std::to_string(m.rows) + " by " + std::to_string(m.cols));
    }
    check_values(name, m.values, m.rows * (m.cols / 2), element_bytes);
    check_values("metadata", m.metadata, m.rows * metadata_bytes(m.cols), 1);
}

// All rows of a weight; of a gradient's the metadata alone.
template <class T>
TwoFourRows<T> rows_of(const TwoFourWeight& weight) {
    return {static_cast<const T*>(weight.values.data),
            weight.metadata.data,
            weight.cols / 2,
            metadata_bytes(weight.cols),
            weight.rows,
            weight.cols};
}

inline int64_t divide_rounding_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_to_multiple(int64_t a, int64_t multiple) {
    return divide_rounding_up(a, multiple) * multiple;
}

}  // namespace sparsekern
