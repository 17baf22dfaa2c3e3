// Checks of what the native entry points are handed; each failure names the argument, the need and what came.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "sparsekern/linear.h"

namespace sparsekern {

inline void check_equal(const char* name, const char* what, int64_t expected, int64_t got) {
    if (expected == got) return;
    throw std::invalid_argument(std::string(name) + ": expected " + what + " " + std::to_string(expected) +
                                ", got " + std::to_string(got));
}

inline void check_threads(int threads) {
    if (threads >= 1) return;
    throw std::invalid_argument("threads: expected at least 1, got " + std::to_string(threads));
}

template <class Pointer>
void check_values(const char* name, const Values<Pointer>& values, int64_t expected) {
    check_equal(name, "length", expected, values.count);
    if (values.count > 0 && values.data == nullptr)
        throw std::invalid_argument(std::string(name) + ": null data");
}

template <class Pointer>
void check_matrix(const char* name, const Matrix<Pointer>& matrix, int64_t rows, int64_t cols) {
    check_equal(name, "rows", rows, matrix.rows);
    if (rows < 0) throw std::invalid_argument(std::string(name) + ": negative rows");
    check_equal(name, "columns", cols, matrix.cols);
    if (rows == 0 || cols == 0) return;
    if (matrix.data == nullptr) throw std::invalid_argument(std::string(name) + ": null data");
    if (matrix.row_stride < 0 || matrix.col_stride < 0) {
        throw std::invalid_argument(std::string(name) + ": negative stride");
    }
    // In 128 bits, since a product of two sizes may not fit 64.
    const __int128 last = static_cast<__int128>(rows - 1) * matrix.row_stride +
                          static_cast<__int128>(cols - 1) * matrix.col_stride;
    if (last >= matrix.count) {
        const bool fits = last <= std::numeric_limits<int64_t>::max();
        const std::string reached = fits ? std::to_string(static_cast<int64_t>(last)) : "2^63 or beyond";
        throw std::invalid_argument(std::string(name) + ": its strides reach element " + reached + " of " +
                                    std::to_string(matrix.count));
    }
}

}  // namespace sparsekern
