// The passes of `grow_candidates` over a dense gradient: what is kept of each of its blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "check.h"
#include "dense_gradient.h"
#include "sparsekern/grow_candidates.h"

namespace sparsekern {

// The bits of a magnitude as an integer, which order as magnitudes do; NaN is above them all, and its
// payload does not count. An active position has a key below all others.
template <class A>
struct KeyOf;
template <>
struct KeyOf<float> {
    using type = int32_t;
    static constexpr type kInfinity = 0x7F800000;
    static constexpr type kNan = 0x7FC00000;
};
template <>
struct KeyOf<double> {
    using type = int64_t;
    static constexpr type kInfinity = 0x7FF0000000000000;
    static constexpr type kNan = 0x7FF8000000000000;
};

template <class Source>
class CandidatePasses final : public GrowCandidates {
    using A = typename Source::Sum;
    using Key = typename KeyOf<A>::type;
    static constexpr Key kActive = std::numeric_limits<Key>::min();
    static constexpr int kKeyBits = 8 * static_cast<int>(sizeof(Key)) - 1;

public:
    // `groups` divides the rows; `source` is of the whole matrix.
    CandidatePasses(const PatternView& pattern, Source source, int64_t groups, int threads)
        : pattern_(pattern),
          source_(std::move(source)),
          threads_(threads),
          table_(kernels<A>()),
          gradient_(source_, table_),
          grid_(groups, pattern.rows / groups, pattern.cols, table_.outer_rows, table_.outer_columns,
                threads > 1 ? 4 * threads : 1) {}
    CandidatePasses(const CandidatePasses&) = delete;
    CandidatePasses& operator=(const CandidatePasses&) = delete;

    void count(const KeyDigit& digit, Values<int64_t*> counts) const override {
        if (digit.bits < 1 || digit.bits > 16 || digit.shift < 0 || digit.shift > kKeyBits - digit.bits) {
            throw std::invalid_argument("digit: expected 1 to 16 bits of a key of " +
                                        std::to_string(kKeyBits) + " bits");
        }
        check_key("prefix", digit.prefix, std::numeric_limits<Key>::max() >> (digit.shift + digit.bits));
        const int64_t digits = int64_t{1} << digit.bits;
        check_values("counts", counts, digits, sizeof(int64_t));
        const Key prefix = static_cast<Key>(digit.prefix);
        const int above = digit.shift + digit.bits;
        const Key mask = static_cast<Key>(digits - 1);
        std::fill(counts.data, counts.data + digits, 0);
        const auto make = [&] {
            Buffer<int64_t> local(digits + 1);
            std::fill(local.data(), local.data() + digits + 1, 0);
            return local;
        };
        for_each_row(
            make,
            [&](Buffer<int64_t>& local, int64_t, int64_t, const Key* keys, int64_t columns) {
                int64_t* const bins = local.data();
                if (above == kKeyBits && prefix == 0) {
                    // No key is passed over, and an active position's one bit leads to the bin behind the
                    // last digit: nothing to branch on.
                    for (int64_t c = 0; c < columns; ++c) {
                        ++bins[static_cast<std::make_unsigned_t<Key>>(keys[c]) >> digit.shift];
                    }
                    return;
                }
                for (int64_t c = 0; c < columns; ++c) {
                    if (keys[c] >> above == prefix) ++bins[keys[c] >> digit.shift & mask];
                }
            },
            [&](const Buffer<int64_t>& local) {
                for (int64_t d = 0; d < digits; ++d) counts.data[d] += local[d];
            });
    }

    void count_ties(int64_t key, Values<int64_t*> ties) const override {
        check_key("key", key, std::numeric_limits<Key>::max());
        check_values("ties", ties, pattern_.rows, sizeof(int64_t));
        std::fill(ties.data, ties.data + pattern_.rows, 0);
        const Key wanted = static_cast<Key>(key);
        for_each_row([] { return 0; },
                     [&](int, int64_t row, int64_t, const Key* keys, int64_t columns) {
                         const int64_t found = std::count(keys, keys + columns, wanted);
#pragma omp atomic
                         ties.data[row] += found;
                     },
                     [](int) {});
    }

    int64_t emit(int64_t least, int64_t tied_rows, const CandidateOutput& to) const override {
        check_key("least", least, std::numeric_limits<Key>::max());
        check_values("scores", to.scores, to.positions.count, sizeof(A));
        check_values("positions", to.positions, to.positions.count, sizeof(int64_t));
        int64_t* const positions = static_cast<int64_t*>(to.positions.data);
        A* const scores = static_cast<A*>(to.scores.data);
        int64_t total = 0;
        for_each_row([] { return 0; },
                     [&](int, int64_t row, int64_t column, const Key* keys, int64_t columns) {
                         // Above `least`, or from it on: an active position's key is below either.
                         const Key last_out = static_cast<Key>(row < tied_rows ? least - 1 : least);
                         int64_t found = 0;
                         for (int64_t c = 0; c < columns; ++c) found += keys[c] > last_out;
                         if (found == 0) return;
                         int64_t at;
#pragma omp atomic capture
                         {
                             at = total;
                             total += found;
                         }
                         if (at + found > to.positions.count) return;
                         for (int64_t c = 0; c < columns; ++c) {
                             if (keys[c] <= last_out) continue;
                             positions[at] = row * pattern_.cols + column + c;
                             std::memcpy(scores + at, keys + c, sizeof(A));
                             ++at;
                         }
                     },
                     [](int) {});
        return total;
    }

private:
    static void check_key(const char* name, int64_t key, int64_t most) {
        if (key >= 0 && key <= most) return;
        throw std::invalid_argument(std::string(name) + ": expected 0 to " + std::to_string(most) + ", got " +
                                    std::to_string(key));
    }

    // visit(local, row, first column, keys, columns) for every row of every block.
    template <class Make, class Visit, class Merge>
    void for_each_row(Make&& make, Visit&& visit, Merge&& merge) const {
        gradient_.run(
            grid_, threads_, make,
            [&](auto& local, const MatrixBlock& block, A* sums, int64_t pitch) {
                Key* const keys = to_keys(sums, block.rows * pitch);
                mark_active(block, keys, pitch);
                for (int64_t r = 0; r < block.rows; ++r) {
                    visit(local, block.row + r, block.column, keys + r * pitch, block.columns);
                }
            },
            merge);
    }

    // In place.
    static Key* to_keys(A* sums, int64_t count) {
        Key* const keys = reinterpret_cast<Key*>(sums);
        for (int64_t i = 0; i < count; ++i) {
            Key key;
            std::memcpy(&key, sums + i, sizeof(key));
            key &= std::numeric_limits<Key>::max();
            keys[i] = key > KeyOf<A>::kInfinity ? KeyOf<A>::kNan : key;
        }
        return keys;
    }

    void mark_active(const MatrixBlock& block, Key* keys, int64_t pitch) const {
        const int64_t size = pattern_.tile_size;
        const int64_t row_end = block.row + block.rows;
        const int64_t column_end = block.column + block.columns;
        for (int64_t tile_row = block.row / size; tile_row * size < row_end; ++tile_row) {
            const int32_t* const end = pattern_.tile_col + pattern_.tile_row_ptr[tile_row + 1];
            const int32_t* tile = std::lower_bound(pattern_.tile_col + pattern_.tile_row_ptr[tile_row], end,
                                                   static_cast<int32_t>(block.column / size));
            const int64_t first = std::max(tile_row * size, block.row);
            const int64_t last = std::min((tile_row + 1) * size, row_end);
            for (; tile != end && *tile * size < column_end; ++tile) {
                const int64_t column = *tile * size - block.column;
                const uint64_t inside =
                    low_bits(block.columns - column) & ~low_bits(std::max<int64_t>(-column, 0));
                for (int64_t n = first; n < last; ++n) {
                    uint64_t bits = pattern_.row_bits(tile - pattern_.tile_col, n - tile_row * size) & inside;
                    Key* const row = keys + (n - block.row) * pitch + column;
                    for (; bits != 0; bits &= bits - 1) row[__builtin_ctzll(bits)] = kActive;
                }
            }
        }
    }

    PatternView pattern_;
    Source source_;
    int threads_;
    const KernelTable<A>& table_;
    DenseGradient<Source> gradient_;
    BlockGrid grid_;
};

}  // namespace sparsekern
