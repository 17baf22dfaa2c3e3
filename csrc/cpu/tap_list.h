// The weight of a convolution as lists: for each row of the result, which runs of the source it reads, and
// with what.
//
// A convolution goes over its weight once for every panel of pixels, so the bits are decoded once per call;
// the lists are scratch of 4 bytes and one payload for each value.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "buffer.h"
#include "sparsekern/pattern.h"

namespace sparsekern {

// Where the position (n, k) of a weight goes: row, group and offset are sums of a part for n and a part for
// k.
struct TapPlaces {
    struct Part {
        int64_t row = 0;
        int64_t group = 0;
        int64_t offset = 0;
    };
    int64_t rows = 0;
    int64_t groups = 1;
    std::vector<Part> of_row;
    std::vector<Part> of_column;
};

// `Payload` is a weight's value, or its index among the values.
template <class Payload>
class TapList {
public:
    template <class Lookup>
    TapList(const PatternView& pattern, const TapPlaces& places, Lookup&& lookup)
        : rows_(places.rows),
          groups_(places.groups),
          ptr_(static_cast<size_t>(places.rows * places.groups + 1), 0),
          offset_(pattern.nnz),
          payload_(pattern.nnz) {
        for_each(pattern, places,
                 [&](int64_t list, int64_t, int64_t) { ++ptr_[static_cast<size_t>(list + 1)]; });
        for (size_t i = 1; i < ptr_.size(); ++i) ptr_[i] += ptr_[i - 1];
        std::vector<int64_t> next(ptr_.begin(), ptr_.end() - 1);
        for_each(pattern, places, [&](int64_t list, int64_t offset, int64_t index) {
            const int64_t at = next[static_cast<size_t>(list)]++;
            offset_[at] = static_cast<int32_t>(offset);
            payload_[at] = lookup(index);
        });
    }

    int64_t rows() const { return rows_; }
    int64_t groups() const { return groups_; }
    // Entry `row` and the one behind it bound that row's part of a group.
    const int64_t* ptr(int64_t group) const { return ptr_.data() + group * rows_; }
    const int32_t* offset() const { return offset_.data(); }
    const Payload* payload() const { return payload_.data(); }

private:
    template <class Visit>
    static void for_each(const PatternView& pattern, const TapPlaces& places, Visit&& visit) {
        for (int64_t r = 0; r < pattern.tile_rows; ++r) {
            for (int64_t t = pattern.tile_row_ptr[r]; t < pattern.tile_row_ptr[r + 1]; ++t) {
                const TapPlaces::Part* columns =
                    places.of_column.data() + pattern.tile_col[t] * pattern.tile_size;
                int64_t index = pattern.tile_start[t];
                for (int64_t i = 0; i < pattern.tile_size; ++i) {
                    uint64_t bits = pattern.row_bits(t, i);
                    if (bits == 0) continue;
                    const TapPlaces::Part& row =
                        places.of_row[static_cast<size_t>(r * pattern.tile_size + i)];
                    for (; bits != 0; bits &= bits - 1, ++index) {
                        const TapPlaces::Part& column = columns[__builtin_ctzll(bits)];
                        visit((row.group + column.group) * places.rows + row.row + column.row,
                              row.offset + column.offset, index);
                    }
                }
            }
        }
    }

    int64_t rows_;
    int64_t groups_;
    std::vector<int64_t> ptr_;
    Buffer<int32_t> offset_;
    Buffer<Payload> payload_;
};

// Offsets are kept in 32 bits: one packed image must stay below 2^31 elements.
inline void check_image_size(int64_t elements) {
    if (elements <= std::numeric_limits<int32_t>::max()) return;
    throw std::invalid_argument("x: expected images of fewer than 2^31 elements with their padding, got " +
                                std::to_string(elements));
}

}  // namespace sparsekern
