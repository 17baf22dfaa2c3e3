// The weight of a convolution as lists: for each row of the result, what it reads of a block of channels, and
// with what.
//
// A convolution goes over its weight once for every tile of pixels, so the bits are decoded once per call; the
// lists are scratch of 4 bytes and one payload for each value.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "source_window.h"
#include "sparsekern/pattern.h"

namespace sparsekern {

// Where the position (n, k) of a weight goes: the row of the result, the channel of the source and the offset
// in that channel's window are sums of a part for n and a part for k.
struct TapPlaces {
    struct Part {
        int64_t row;
        int64_t channel;
        int64_t offset;
    };
    std::vector<Part> of_row;
    std::vector<Part> of_column;
};

// `Payload` is a weight's value, or its index among the values.
template <class Payload>
class TapList {
public:
    template <class Lookup>
    TapList(const PatternView& pattern, const SourceWindow& window, const TapPlaces& places, Lookup&& lookup)
        : rows_(window.rows()),
          ptr_(static_cast<size_t>(rows_ * window.blocks() + 1), 0),
          offset_(pattern.nnz),
          payload_(pattern.nnz) {
        const std::vector<Place> channels = channel_places(window);
        for_each(pattern, places, channels,
                 [&](int64_t list, int64_t, int64_t) { ++ptr_[static_cast<size_t>(list + 1)]; });
        for (size_t i = 1; i < ptr_.size(); ++i) ptr_[i] += ptr_[i - 1];
        std::vector<int64_t> next(ptr_.begin(), ptr_.end() - 1);
        for_each(pattern, places, channels, [&](int64_t list, int64_t offset, int64_t index) {
            const int64_t at = next[static_cast<size_t>(list)]++;
            offset_[at] = static_cast<int32_t>(offset);
            payload_[at] = lookup(index);
        });
    }

    // Entry `row` and the one behind it bound that row's part of a block.
    const int64_t* ptr(int64_t block) const { return ptr_.data() + block * rows_; }
    const int32_t* offset() const { return offset_.data(); }
    const Payload* payload() const { return payload_.data(); }

private:
    // The list of row 0 and the offset that belong to a channel.
    struct Place {
        int64_t list;
        int64_t offset;
    };

    static std::vector<Place> channel_places(const SourceWindow& window) {
        std::vector<Place> places;
        for (int64_t c = 0; c < window.channels(); ++c) {
            places.push_back({c / window.block_channels() * window.rows(),
                              c % window.block_channels() * window.channel_size()});
        }
        return places;
    }

    template <class Visit>
    static void for_each(const PatternView& pattern, const TapPlaces& places,
                         const std::vector<Place>& channels, Visit&& visit) {
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
                        const Place& place = channels[static_cast<size_t>(row.channel + column.channel)];
                        visit(place.list + row.row + column.row, place.offset + column.offset, index);
                    }
                }
            }
        }
    }

    int64_t rows_;
    std::vector<int64_t> ptr_;
    Buffer<int32_t> offset_;
    Buffer<Payload> payload_;
};

}  // namespace sparsekern
