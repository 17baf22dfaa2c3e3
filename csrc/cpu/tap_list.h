// The weight of a convolution as lists: for each row of the result, what it reads of a block of channels, and
// with what.
//
// A convolution goes over its weight once for every tile of pixels, so the bits are decoded once per call;
// the lists are scratch of 4 bytes and one payload for each value.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "source_window.h"
#include "sparsekern/pattern.h"

namespace sparsekern {

// Where the position (n, k) of a weight goes: the sum of a part for n and a part for k.
struct TapPlaces {
    std::vector<TapPlace> of_row;
    std::vector<TapPlace> of_column;
};

// `Payload` is a weight's value, or its index among the values.
template <class Payload>
class TapList {
public:
    // `payload[i]` goes with value i of the pattern.
    template <class Source>
    TapList(const PatternView& pattern, const SourceWindow& window, const TapPlaces& places,
            const Source& payload, int threads)
        : ptr_(static_cast<size_t>(window.lists() + 1), 0), offset_(pattern.nnz), payload_(pattern.nnz) {
        const int64_t lists = window.lists();
        const int64_t parts =
            std::clamp<int64_t>(pattern.nnz / kPartValues, 1, std::min<int64_t>(threads, pattern.tile_rows));
        const auto first_tile = [&](int64_t part) {
            return pattern.tile_row_ptr[pattern.tile_rows * part / parts];
        };
        Buffer<int32_t> list(pattern.nnz);
        Buffer<int32_t> offset(pattern.nnz);
        // Per part and list: how many values, and then where the next one goes.
        std::vector<int64_t> next(static_cast<size_t>(parts * lists), 0);
#pragma omp parallel for schedule(static) num_threads(parts) if (parts > 1)
        for (int64_t part = 0; part < parts; ++part) {
            decode(pattern, places, pattern.tile_rows * part / parts, pattern.tile_rows * (part + 1) / parts,
                   list.data(), offset.data(), next.data() + part * lists);
        }
        int64_t total = 0;
        for (int64_t l = 0; l < lists; ++l) {
            ptr_[static_cast<size_t>(l)] = total;
            for (int64_t part = 0; part < parts; ++part) {
                int64_t& count = next[static_cast<size_t>(part * lists + l)];
                total += count;
                count = total - count;
            }
        }
        ptr_[static_cast<size_t>(lists)] = total;
#pragma omp parallel for schedule(static) num_threads(parts) if (parts > 1)
        for (int64_t part = 0; part < parts; ++part) {
            int64_t* const places_of = next.data() + part * lists;
            const int64_t end = pattern.tile_start[first_tile(part + 1)];
            for (int64_t i = pattern.tile_start[first_tile(part)]; i < end; ++i) {
                const int64_t at = places_of[list[i]]++;
                offset_[at] = offset[i];
                payload_[at] = payload[i];
            }
        }
    }

    // Entry i and the one behind it bound the list of row `row` + i in a block.
    const int64_t* ptr(const ChannelBlock& block, int64_t row) const {
        return ptr_.data() + block.list + row - block.row_begin;
    }
    const int32_t* offset() const { return offset_.data(); }
    const Payload* payload() const { return payload_.data(); }

private:
    // Values for which another thread pays.
    static constexpr int64_t kPartValues = 8192;

    // Lists and offsets of the values in some rows of tiles, and how many values each list has.
    static void decode(const PatternView& pattern, const TapPlaces& places, int64_t begin, int64_t end,
                       int32_t* list, int32_t* offset, int64_t* count) {
        for (int64_t r = begin; r < end; ++r) {
            for (int64_t t = pattern.tile_row_ptr[r]; t < pattern.tile_row_ptr[r + 1]; ++t) {
                const TapPlace* columns = places.of_column.data() + pattern.tile_col[t] * pattern.tile_size;
                int64_t i = pattern.tile_start[t];
                for (int64_t n = 0; n < pattern.tile_size; ++n) {
                    uint64_t bits = pattern.row_bits(t, n);
                    if (bits == 0) continue;
                    const TapPlace row = places.of_row[static_cast<size_t>(r * pattern.tile_size + n)];
                    for (; bits != 0; bits &= bits - 1, ++i) {
                        const TapPlace& column = columns[__builtin_ctzll(bits)];
                        list[i] = static_cast<int32_t>(row.list + column.list);
                        offset[i] = static_cast<int32_t>(row.offset + column.offset);
                        ++count[list[i]];
                    }
                }
            }
        }
    }

    std::vector<int64_t> ptr_;
    Buffer<int32_t> offset_;
    Buffer<Payload> payload_;
};

}  // namespace sparsekern
