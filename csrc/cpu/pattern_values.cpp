// Moving values between the compact vector and the dense weight.
#include "sparsekern/pattern_values.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "element_size.h"
#include "pattern_walk.h"

namespace sparsekern {
namespace {

// Where the columns of a row lie in the weight's own memory order; empty when that is the order they come in.
std::vector<int64_t> column_offsets(const PatternView& p) {
    const int64_t positions = p.kh * p.kw;
    std::vector<int64_t> offsets;
    if (positions == 1) return offsets;
    offsets.resize(static_cast<size_t>(p.cols));
    for (int64_t k = 0; k < p.cols; ++k) offsets[k] = (k % p.cin) * positions + k / p.cin;
    return offsets;
}

template <typename Element>
void pack_as(const PatternView& p, const Element* dense, Element* values, int threads) {
    const std::vector<int64_t> offsets = column_offsets(p);
    for_each_tile_row(p, threads, [&](const TileRow& row) {
        const Element* from = dense + row.matrix_row * p.cols;
        Element* to = values + row.first_value;
        if (!offsets.empty()) {
            const int64_t* offset = offsets.data() + row.first_col;
            for_each_bit(row.bits, [&](int column) { *to++ = from[offset[column]]; });
        } else if (row.bits == low_bits(p.tile_size)) {
            std::memcpy(to, from + row.first_col, static_cast<size_t>(p.tile_size) * sizeof(Element));
        } else {
            from += row.first_col;
            for_each_bit(row.bits, [&](int column) { *to++ = from[column]; });
        }
    });
}

template <typename Element>
void unpack_as(const PatternView& p, const Element* values, Element* dense, int threads) {
    fill_zero(dense, p.rows * p.cols, threads);
    const std::vector<int64_t> offsets = column_offsets(p);
    for_each_tile_row(p, threads, [&](const TileRow& row) {
        const Element* from = values + row.first_value;
        Element* to = dense + row.matrix_row * p.cols;
        if (!offsets.empty()) {
            const int64_t* offset = offsets.data() + row.first_col;
            for_each_bit(row.bits, [&](int column) { to[offset[column]] = *from++; });
        } else if (row.bits == low_bits(p.tile_size)) {
            std::memcpy(to + row.first_col, from, static_cast<size_t>(p.tile_size) * sizeof(Element));
        } else {
            to += row.first_col;
            for_each_bit(row.bits, [&](int column) { to[column] = *from++; });
        }
    });
}

}  // namespace

void to_mask(const PatternView& pattern, unsigned char* mask, int64_t elements, int threads) {
    check_threads(threads);
    check_elements("mask", mask, 1, elements, pattern.rows * pattern.cols);
    fill_zero(mask, elements, threads);
    const std::vector<int64_t> offsets = column_offsets(pattern);
    for_each_tile_row(pattern, threads, [&](const TileRow& row) {
        unsigned char* to = mask + row.matrix_row * pattern.cols;
        for_each_bit(row.bits, [&](int column) {
            const int64_t k = row.first_col + column;
            to[offsets.empty() ? k : offsets[k]] = 1;
        });
    });
}

void pack(const PatternView& pattern, const void* dense, int64_t dense_elements, void* values,
          int64_t value_elements, int64_t element_size, int threads) {
    check_threads(threads);
    check_element_size(element_size);
    check_elements("dense", dense, element_size, dense_elements, pattern.rows * pattern.cols);
    check_elements("values", values, element_size, value_elements, pattern.nnz);
    with_element_size(element_size, [&](auto zero) {
        using Element = decltype(zero);
        pack_as(pattern, static_cast<const Element*>(dense), static_cast<Element*>(values), threads);
    });
}

void unpack(const PatternView& pattern, const void* values, int64_t value_elements, void* dense,
            int64_t dense_elements, int64_t element_size, int threads) {
    check_threads(threads);
    check_element_size(element_size);
    check_elements("values", values, element_size, value_elements, pattern.nnz);
    check_elements("dense", dense, element_size, dense_elements, pattern.rows * pattern.cols);
    with_element_size(element_size, [&](auto zero) {
        using Element = decltype(zero);
        unpack_as(pattern, static_cast<const Element*>(values), static_cast<Element*>(dense), threads);
    });
}

}  // namespace sparsekern
