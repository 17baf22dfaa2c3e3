// Checks of what the native entry points are handed; each failure names the argument, the need and what came.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "sparsekern/linear.h"

namespace sparsekern {

// More than any machine has, and few enough that scratch for all of them can be counted.
constexpr int kMostThreads = 4096;

// The most elements that a matrix may have, also where strides let many of them share memory: what is
// computed from its sizes then fits 64 bits.
constexpr int64_t kMostElements = int64_t{1} << 48;

inline void check_equal(const char* name, const char* what, int64_t expected, int64_t got) {
    if (expected == got) return;
    throw std::invalid_argument(std::string(name) + ": expected " + what + " " + std::to_string(expected) +
                                ", got " + std::to_string(got));
}

inline void check_threads(int threads) {
    if (threads < 1) {
        throw std::invalid_argument("threads: expected at least 1, got " + std::to_string(threads));
    }
    if (threads > kMostThreads) {
        throw std::invalid_argument("threads: expected at most " + std::to_string(kMostThreads) + ", got " +
                                    std::to_string(threads));
    }
}

// Whether `count` elements may lie at an address.
inline void check_address(const char* name, const void* data, int64_t count, int64_t element_bytes) {
    if (count <= 0) return;
    if (data == nullptr) throw std::invalid_argument(std::string(name) + ": null data");
    if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(element_bytes) == 0) return;
    throw std::invalid_argument(std::string(name) + ": expected data aligned to its elements of " +
                                std::to_string(element_bytes) + " bytes; a copy is");
}

template <class Pointer>
void check_values(const char* name, const Values<Pointer>& values, int64_t expected, int64_t element_bytes) {
    check_equal(name, "length", expected, values.count);
    check_address(name, values.data, values.count, element_bytes);
}

// Of a matrix that is not empty: that all its elements are among those that follow its address.
template <class Pointer>
void check_reach(const char* name, const Matrix<Pointer>& matrix) {
    if (matrix.row_stride < 0 || matrix.col_stride < 0) {
        throw std::invalid_argument(std::string(name) + ": negative stride");
    }
    // In 128 bits, since a product of two sizes may not fit 64.
    const __int128 last = static_cast<__int128>(matrix.rows - 1) * matrix.row_stride +
                          static_cast<__int128>(matrix.cols - 1) * matrix.col_stride;
    if (last < matrix.count) return;
    const bool fits = last <= std::numeric_limits<int64_t>::max();
    const std::string reached = fits ? std::to_string(static_cast<int64_t>(last)) : "2^63 or beyond";
    throw std::invalid_argument(std::string(name) + ": its strides reach element " + reached + " of " +
                                std::to_string(matrix.count));
}

template <class Pointer>
void check_matrix(const char* name, const Matrix<Pointer>& matrix, int64_t rows, int64_t cols,
                  int64_t element_bytes) {
    check_equal(name, "rows", rows, matrix.rows);
    if (rows < 0) throw std::invalid_argument(std::string(name) + ": negative rows");
    check_equal(name, "columns", cols, matrix.cols);
    if (rows > 0 && cols > 0) {
        check_address(name, matrix.data, 1, element_bytes);
        check_reach(name, matrix);
    }
    if (rows > kMostElements || static_cast<__int128>(rows) * cols > kMostElements) {
        throw std::invalid_argument(std::string(name) + ": expected at most 2^48 elements, got " +
                                    std::to_string(rows) + " rows of " + std::to_string(cols));
    }
}

}  // namespace sparsekern
