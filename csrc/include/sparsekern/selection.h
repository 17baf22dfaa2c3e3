// Exact selection of the largest of many scores without sorting: scores as ordered integers (keys), and a
// radix search for the threshold, digit by digit from histograms. CPU and GPU code share every decision made
// here.
//
// Items are ordered by key, the largest first, and equal keys by index, the smallest first. No two items are
// equal in that order, so the search always ends at a threshold that exactly the wanted number of items pass.
#pragma once

#include <cstdint>

#include "sparsekern/pattern.h"

namespace sparsekern {

// The floating-point types that scores and values may have. Each is known by its width and its infinity.
enum class FloatType : int32_t { float16 = 0, bfloat16 = 1, float32 = 2, float64 = 3 };

template <class StorageBits, class KeyBits, KeyBits kInfinityBits>
struct FloatFormat {
    using Storage = StorageBits;
    using Key = KeyBits;
    static constexpr int kBits = 8 * sizeof(StorageBits);
    static constexpr Key kSign = Key{1} << (kBits - 1);
    static constexpr Key kInfinity = kInfinityBits;
};
using Float16Format = FloatFormat<uint16_t, uint32_t, 0x7C00u>;
using BFloat16Format = FloatFormat<uint16_t, uint32_t, 0x7F80u>;
using Float32Format = FloatFormat<uint32_t, uint32_t, 0x7F800000u>;
using Float64Format = FloatFormat<uint64_t, uint64_t, 0x7FF0000000000000ull>;

SPARSEKERN_HOST_DEVICE constexpr int float_bits(FloatType type) {
    return type == FloatType::float64 ? 64 : type == FloatType::float32 ? 32 : 16;
}

// What makes an item large.
enum class Order : int32_t { largest_magnitude = 0, largest_value = 1, smallest_magnitude = 2 };

// |x| as an integer in the same order. All NaN are one, above infinity.
template <class Format>
SPARSEKERN_HOST_DEVICE inline typename Format::Key magnitude_key(typename Format::Storage bits) {
    const typename Format::Key magnitude = bits & (Format::kSign - 1);
    return magnitude > Format::kInfinity ? Format::kInfinity + 1 : magnitude;
}

// The key of a score or value. With the sign, a magnitude counts from the middle: -0.0 is 0.0.
template <class Format, Order order>
SPARSEKERN_HOST_DEVICE inline typename Format::Key key_of(typename Format::Storage bits) {
    using Key = typename Format::Key;
    const Key magnitude = magnitude_key<Format>(bits);
    if (order == Order::largest_magnitude) return magnitude;
    if (order == Order::smallest_magnitude) return Format::kSign + (Format::kSign - 1) - magnitude;
    const bool negative = (bits & Format::kSign) != 0 && magnitude <= Format::kInfinity;
    return negative ? Format::kSign - magnitude : Format::kSign + magnitude;
}

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;

SPARSEKERN_HOST_DEVICE constexpr int digits_of(int bits) { return (bits + kDigitBits - 1) / kDigitBits; }

// The bits that a number below `count` needs, at least 1.
SPARSEKERN_HOST_DEVICE constexpr int index_bits(int64_t count) {
    int bits = 1;
    while ((count - 1) >> bits != 0) ++bits;
    return bits;
}

// The state of a search. Items with keys low..high at indices first..last are undecided, and `wanted` of them
// are to be taken; whatever is larger is taken. The next digit is number `level`: first those of the key,
// then those of the index.
struct Selection {
    uint64_t low;
    uint64_t high;
    int64_t first;
    int64_t last;
    int64_t wanted;
    int32_t key_bits;
    int32_t index_bits;
    int32_t level;
    int32_t done;
};

SPARSEKERN_HOST_DEVICE inline Selection begin_selection(int64_t wanted, int key_bits, int64_t indices) {
    Selection s;
    s.low = 0;
    s.high = key_bits == 64 ? ~uint64_t{0} : (uint64_t{1} << key_bits) - 1;
    s.first = 0;
    s.last = indices - 1;
    s.wanted = wanted;
    s.key_bits = key_bits;
    s.index_bits = index_bits(indices);
    s.level = 0;
    s.done = wanted == 0;
    if (s.done) {  // a threshold that nothing passes
        s.low = s.high = ~uint64_t{0};
        s.last = -1;
    }
    return s;
}

// Digits that a search may need.
SPARSEKERN_HOST_DEVICE inline int levels(const Selection& s) {
    return digits_of(s.key_bits) + digits_of(s.index_bits);
}

SPARSEKERN_HOST_DEVICE inline bool in_key_digits(const Selection& s) {
    return s.level < digits_of(s.key_bits);
}

// Where the next digit begins.
SPARSEKERN_HOST_DEVICE inline int digit_shift(const Selection& s) {
    const int key_digits = digits_of(s.key_bits);
    const int rest = s.level < key_digits ? s.key_bits - kDigitBits * (s.level + 1)
                                          : s.index_bits - kDigitBits * (s.level - key_digits + 1);
    return rest > 0 ? rest : 0;
}

SPARSEKERN_HOST_DEVICE inline bool undecided(const Selection& s, uint64_t key, int64_t index) {
    return key >= s.low && key <= s.high && index >= s.first && index <= s.last;
}

// The bin of an undecided item: larger items have larger bins.
SPARSEKERN_HOST_DEVICE inline int bin_of(const Selection& s, int shift, uint64_t key, int64_t index) {
    if (in_key_digits(s)) return static_cast<int>((key - s.low) >> shift);
    return kBins - 1 - static_cast<int>((index - s.first) >> shift);
}

// The bin in which the wanted items end: `above` items are in larger bins, `inside` in this one.
struct Bin {
    int bin;
    int64_t above;
    int64_t inside;
};

// Looks for that bin among end - 1 down to begin, above which there are `above` items; whether it is there.
template <class Count>
SPARSEKERN_HOST_DEVICE inline bool find_bin(const Count* histogram, int begin, int end, int64_t above,
                                            int64_t wanted, Bin* found) {
    for (int bin = end - 1; bin >= begin; --bin) {
        const int64_t inside = static_cast<int64_t>(histogram[bin]);
        if (above + inside >= wanted) {
            *found = {bin, above, inside};
            return true;
        }
        above += inside;
    }
    return false;
}

// Takes what lies above the bin and leaves the bin undecided. The search is done when all of the bin is
// wanted.
SPARSEKERN_HOST_DEVICE inline void narrow(Selection* s, const Bin& found) {
    const int shift = digit_shift(*s);
    if (in_key_digits(*s)) {
        s->low += static_cast<uint64_t>(found.bin) << shift;
        s->high = s->low + ((uint64_t{1} << shift) - 1);
    } else {
        s->first += static_cast<int64_t>(kBins - 1 - found.bin) << shift;
        const int64_t last = s->first + ((int64_t{1} << shift) - 1);
        if (last < s->last) s->last = last;
    }
    s->wanted -= found.above;
    ++s->level;
    s->done = found.inside == s->wanted;
}

// Whether an item is among the selected, when the search is done.
SPARSEKERN_HOST_DEVICE inline bool taken(const Selection& s, uint64_t key, int64_t index) {
    return key > s.low || (key == s.low && index <= s.last);
}

// The i-th of a fixed sequence of places that look random, below `count`.
SPARSEKERN_HOST_DEVICE inline int64_t sample_place(int64_t i, int64_t count) {
    uint64_t x = static_cast<uint64_t>(i + 1) * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    x ^= x >> 31;
    const auto place =
        static_cast<int64_t>(static_cast<double>(x >> 11) * 0x1.0p-53 * static_cast<double>(count));
    return place < count ? place : count - 1;
}

// How many of `samples` to take, so that the least of them is below the `wanted`-th largest of `items` with a
// margin of four standard deviations; more than `samples` when they are too few to tell.
SPARSEKERN_HOST_DEVICE inline int64_t sample_rank(int64_t samples, int64_t items, int64_t wanted) {
    const double mean =
        static_cast<double>(samples) * static_cast<double>(wanted) / static_cast<double>(items);
    int64_t root = 0;
    while (static_cast<double>(root) * static_cast<double>(root) < mean) ++root;
    return static_cast<int64_t>(mean) + 4 * root + 8;
}

// Candidates that growing `wanted` positions has room for, among `items` at most.
SPARSEKERN_HOST_DEVICE inline int64_t candidate_capacity(int64_t wanted, int64_t items) {
    const int64_t capacity = 2 * wanted + 65536;
    return capacity < items ? capacity : items;
}

}  // namespace sparsekern
