// Moving values between the compact vector and the dense weight, and from one pattern to another.
#include "sparsekern/pattern_values.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

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

// The tile of `p` at (tile_row, tile_col), or -1 when it is empty.
int64_t find_tile(const PatternView& p, int64_t tile_row, int32_t tile_col) {
    const int32_t* begin = p.tile_col + p.tile_row_ptr[tile_row];
    const int32_t* end = p.tile_col + p.tile_row_ptr[tile_row + 1];
    const int32_t* found = std::lower_bound(begin, end, tile_col);
    return found != end && *found == tile_col ? found - p.tile_col : -1;
}

template <typename Element>
void transfer_row(uint64_t from_bits, const Element* from, uint64_t to_bits, Element* to) {
    if (from_bits == to_bits) {
        std::copy(from, from + popcount64(to_bits), to);
        return;
    }
    for_each_bit(to_bits, [&](int column) {
        const bool kept = (from_bits >> column) & 1;
        *to++ = kept ? from[popcount64(from_bits & low_bits(column))] : Element(0);
    });
}

template <typename Element>
void transfer_as(const PatternView& from, const Element* from_values, const PatternView& to,
                 Element* to_values, int threads) {
    for_each_tile(to, threads, [&](int64_t tile, int64_t tile_row) {
        const int64_t source = find_tile(from, tile_row, to.tile_col[tile]);
        if (source < 0) {
            std::fill(to_values + to.tile_start[tile], to_values + to.tile_start[tile + 1], Element(0));
            return;
        }
        for (int64_t r = 0; r < to.tile_size; ++r) {
            transfer_row(from.row_bits(source, r), from_values + from.row_start(source, r),
                         to.row_bits(tile, r), to_values + to.row_start(tile, r));
        }
    });
}

// Calls `copy` with a value of the unsigned type of that many bytes.
template <typename Copy>
void with_element_size(int64_t element_size, const Copy& copy) {
    switch (element_size) {
        case 1:
            return copy(uint8_t());
        case 2:
            return copy(uint16_t());
        case 4:
            return copy(uint32_t());
        case 8:
            return copy(uint64_t());
        default:
            throw std::invalid_argument("element size must be 1, 2, 4 or 8 bytes, got " +
                                        std::to_string(element_size));
    }
}

}  // namespace

void to_mask(const PatternView& pattern, unsigned char* mask, int64_t elements, int threads) {
    check_threads(threads);
    check_elements("mask", elements, pattern.rows * pattern.cols);
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
    check_elements("dense", dense_elements, pattern.rows * pattern.cols);
    check_elements("values", value_elements, pattern.nnz);
    with_element_size(element_size, [&](auto zero) {
        using Element = decltype(zero);
        pack_as(pattern, static_cast<const Element*>(dense), static_cast<Element*>(values), threads);
    });
}

void unpack(const PatternView& pattern, const void* values, int64_t value_elements, void* dense,
            int64_t dense_elements, int64_t element_size, int threads) {
    check_threads(threads);
    check_elements("values", value_elements, pattern.nnz);
    check_elements("dense", dense_elements, pattern.rows * pattern.cols);
    with_element_size(element_size, [&](auto zero) {
        using Element = decltype(zero);
        unpack_as(pattern, static_cast<const Element*>(values), static_cast<Element*>(dense), threads);
    });
}

void transfer(const PatternView& from, const void* from_values, int64_t from_elements, const PatternView& to,
              void* to_values, int64_t to_elements, int64_t element_size, int threads) {
    check_threads(threads);
    if (from.rows != to.rows || from.cols != to.cols || from.dims != to.dims || from.cin != to.cin ||
        from.kh != to.kh || from.kw != to.kw) {
        throw std::invalid_argument("the two patterns must have the same shape");
    }
    if (from.tile_size != to.tile_size) {
        throw std::invalid_argument("the two patterns must have the same tile size");
    }
    check_elements("from_values", from_elements, from.nnz);
    check_elements("to_values", to_elements, to.nnz);
    with_element_size(element_size, [&](auto zero) {
        using Element = decltype(zero);
        transfer_as(from, static_cast<const Element*>(from_values), to, static_cast<Element*>(to_values),
                    threads);
    });
}

}  // namespace sparsekern
