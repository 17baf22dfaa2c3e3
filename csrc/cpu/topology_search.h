// The search for a selection's threshold by all threads, and the items that may grow.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "buffer.h"
#include "pattern_walk.h"
#include "sparsekern/grid.h"
#include "sparsekern/selection.h"

namespace sparsekern {

// One thread's share of `items`.
struct Part {
    int64_t begin;
    int64_t end;

    static Part of_this_thread(int64_t items) {
        const int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
        return {items / parts * part + std::min(part, items % parts),
                items / parts * (part + 1) + std::min(part + 1, items % parts)};
    }
};

// Narrows `s` until it is done. `count(s, shift, histogram)` is called by every thread of a team and adds the
// undecided items of its part.
template <class Count>
void search(Selection* s, int threads, const Count& count) {
    Buffer<int64_t> histograms(static_cast<int64_t>(threads) * kBins);
    int64_t* const total = histograms.data();
    while (!s->done) {
        if (s->level == levels(*s)) throw std::invalid_argument("positions: one is named twice");
        std::fill_n(total, static_cast<int64_t>(threads) * kBins, 0);
        const int shift = digit_shift(*s);
#pragma omp parallel num_threads(threads)
        count(*s, shift, total + static_cast<int64_t>(omp_get_thread_num()) * kBins);
        for (int thread = 1; thread < threads; ++thread) {
            const int64_t* const part = total + static_cast<int64_t>(thread) * kBins;
            for (int bin = 0; bin < kBins; ++bin) total[bin] += part[bin];
        }
        Bin found;
        if (!find_bin(total, 0, kBins, 0, s->wanted, &found)) {
            throw std::invalid_argument("scores: too few positions may grow");
        }
        narrow(s, found);
    }
}

// Counts items whose keys and indices are arrays; the indices are read only when a digit is theirs.
template <class Keys, class Index>
void count_items(const Selection& s, int shift, int64_t* histogram, Part part, const Keys& key,
                 const Index& index) {
    const uint64_t span = s.high - s.low;
    if (in_key_digits(s)) {
        for (int64_t i = part.begin; i < part.end; ++i) {
            const uint64_t offset = key(i) - s.low;
            if (offset <= span) ++histogram[offset >> shift];
        }
        return;
    }
    for (int64_t i = part.begin; i < part.end; ++i) {
        if (key(i) == s.low && undecided(s, s.low, index(i))) ++histogram[bin_of(s, shift, s.low, index(i))];
    }
}

// Positions that may grow, in any order. Threads add to it side by side.
template <class Key>
class GrowthList {
public:
    explicit GrowthList(int64_t capacity) : capacity_(capacity), key_(capacity), index_(capacity) {}

    // Adds `count` items, or only notes that they do not fit.
    void append(const Key* keys, const int64_t* indices, int64_t count) {
        const int64_t at = __atomic_fetch_add(&size_, count, __ATOMIC_RELAXED);
        if (at + count > capacity_) return;
        std::copy_n(keys, count, key_.data() + at);
        std::copy_n(indices, count, index_.data() + at);
    }
    bool overflowed() const { return __atomic_load_n(&size_, __ATOMIC_RELAXED) > capacity_; }
    int64_t size() const { return size_; }
    Key key(int64_t i) const { return key_[i]; }
    int64_t index(int64_t i) const { return index_[i]; }

    // Takes the `wanted` largest: calls take(index) for each, from several threads.
    template <class Take>
    void select(int64_t wanted, int64_t indices, int key_bits, int threads, const Take& take) const {
        threads = useful_threads(threads, size_);
        Selection s = begin_selection(wanted, key_bits, indices);
        const auto key = [&](int64_t i) -> uint64_t { return key_[i]; };
        const auto index = [&](int64_t i) { return index_[i]; };
        search(&s, threads, [&](const Selection& state, int shift, int64_t* histogram) {
            count_items(state, shift, histogram, Part::of_this_thread(size_), key, index);
        });
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < size_; ++i) {
            if (taken(s, key_[i], index_[i])) take(index_[i]);
        }
    }

private:
    int64_t capacity_;
    int64_t size_ = 0;
    Buffer<Key> key_;
    Buffer<int64_t> index_;
};

// Calls body(Format{}) with the format of a type, so that one generic lambda serves all.
template <class Body>
void with_format(FloatType type, const Body& body) {
    switch (type) {
        case FloatType::float16:
            return body(Float16Format{});
        case FloatType::bfloat16:
            return body(BFloat16Format{});
        case FloatType::float32:
            return body(Float32Format{});
        case FloatType::float64:
            return body(Float64Format{});
    }
    throw std::invalid_argument("dtype: expected float16, bfloat16, float32 or float64");
}

}  // namespace sparsekern
