// Growing from dense scores. One pass over them collects what may grow: all scores above a bound that a
// sample gives, few more than are wanted. Where the sample misled, the threshold is searched among all
// scores.
#include <algorithm>
#include <cstring>
#include <functional>

#include "pattern_walk.h"
#include "topology_grow.h"
#include "topology_search.h"

namespace sparsekern {
namespace {

constexpr int64_t kSamples = 32768;
constexpr int64_t kChunk = 1024;

// Follows ascending elements of the dense weight through the rows and columns of its matrix.
class Walker {
public:
    Walker(const PatternView& p, int64_t element)
        : cols_(p.cols), order_{p.cols, p.cin, p.kh * p.kw}, row_(element / p.cols), start_(row_ * p.cols) {}

    void advance_to(int64_t element) {
        for (; element - start_ >= cols_; start_ += cols_) ++row_;
        col_ = column_of(order_, element - start_);
    }
    int64_t row() const { return row_; }
    int64_t col() const { return col_; }
    int64_t index() const { return start_ + col_; }

private:
    int64_t cols_;
    WeightOrder order_;
    int64_t row_;
    int64_t start_;
    int64_t col_ = 0;
};

template <class Format, Order order>
class DenseGrowth {
public:
    using Storage = typename Format::Storage;
    using Key = typename Format::Key;

    DenseGrowth(const PatternView& pattern, const Storage* scores, int64_t count, TopologyGrid* grid,
                int threads)
        : pattern_(pattern),
          scores_(scores),
          count_(count),
          elements_(pattern.rows * pattern.cols),
          free_(elements_ - (pattern.nnz - count)),
          grid_(grid),
          threads_(useful_threads(threads, elements_)) {}

    void run() {
        GrowthList<Key> list(candidate_capacity(count_, free_));
        collect(lower_bound(), &list);
        if (!list.overflowed() && list.size() >= count_) {
            list.select(count_, elements_, Format::kBits, threads_,
                        [this](int64_t index) { grid_->set_index(index); });
        } else {
            grow_from_all();
        }
    }

private:
    static Key key(Storage bits) { return key_of<Format, order>(bits); }

    // A key that about the wanted number of free positions reach, or somewhat more; 0 when all have room.
    Key lower_bound() const {
        if (candidate_capacity(count_, free_) == free_) return 0;
        Buffer<Key> keys(kSamples);
        int64_t samples = 0;
        for (int64_t i = 0; i < kSamples; ++i) {
            const int64_t element = sample_place(i, elements_);
            Walker at(pattern_, element);
            at.advance_to(element);
            if (!grid_->test(grid_->bit(at.row(), at.col()))) keys[samples++] = key(scores_[element]);
        }
        const int64_t rank = samples == 0 ? 1 : sample_rank(samples, free_, count_);
        if (rank > samples) return 0;
        Key* const place = keys.data() + (rank - 1);
        std::nth_element(keys.data(), place, keys.data() + samples, std::greater<Key>());
        return *place;
    }

    void collect(Key least, GrowthList<Key>* list) const {
#pragma omp parallel num_threads(threads_)
        {
            const Part part = Part::of_this_thread(elements_);
            Walker at(pattern_, part.begin);
            Key keys[kChunk];
            int64_t indices[kChunk];
            for (int64_t chunk = part.begin; chunk < part.end && !list->overflowed(); chunk += kChunk) {
                const int64_t end = std::min(chunk + kChunk, part.end);
                int64_t found = 0;
                for_each_match(least, chunk, end, [&](int64_t element) {
                    at.advance_to(element);
                    if (grid_->test(grid_->bit(at.row(), at.col()))) return;
                    keys[found] = key(scores_[element]);
                    indices[found++] = at.index();
                });
                list->append(keys, indices, found);
            }
        }
    }

    // Calls visit(element) for those with at least the key `least`. Whole words of flags are passed over: few
    // scores match.
    template <class Visit>
    void for_each_match(Key least, int64_t begin, int64_t end, const Visit& visit) const {
        alignas(64) unsigned char flags[kChunk];
        const Storage* const scores = scores_ + begin;
        const int64_t count = end - begin;
        for (int64_t i = 0; i < count; ++i) flags[i] = key(scores[i]) >= least;
        int64_t i = 0;
        for (; i + 8 <= count; i += 8) {
            uint64_t word;
            std::memcpy(&word, flags + i, sizeof(word));
            for (; word != 0; word &= word - 1) visit(begin + i + __builtin_ctzll(word) / 8);
        }
        for (; i < count; ++i) {
            if (flags[i]) visit(begin + i);
        }
    }

    void grow_from_all() {
        Selection s = begin_selection(count_, Format::kBits, elements_);
        search(&s, threads_, [this](const Selection& state, int shift, int64_t* histogram) {
            for_each_free([&](uint64_t key, int64_t index, int64_t) {
                if (undecided(state, key, index)) ++histogram[bin_of(state, shift, key, index)];
            });
        });
#pragma omp parallel num_threads(threads_)
        for_each_free([&](uint64_t key, int64_t index, int64_t bit) {
            if (taken(s, key, index)) grid_->set(bit);
        });
    }

    template <class Visit>
    void for_each_free(const Visit& visit) const {
        const Part part = Part::of_this_thread(elements_);
        Walker at(pattern_, part.begin);
        for (int64_t element = part.begin; element < part.end; ++element) {
            at.advance_to(element);
            const int64_t bit = grid_->bit(at.row(), at.col());
            if (!grid_->test(bit)) visit(key(scores_[element]), at.index(), bit);
        }
    }

    const PatternView& pattern_;
    const Storage* scores_;
    int64_t count_;
    int64_t elements_;
    int64_t free_;
    TopologyGrid* grid_;
    int threads_;
};

}  // namespace

void grow_dense(const PatternView& pattern, const FloatVector& scores, int64_t count, Order order,
                TopologyGrid* grid, int threads) {
    with_format(scores.type, [&](auto format) {
        using Format = decltype(format);
        const auto* const data = static_cast<const typename Format::Storage*>(scores.data);
        if (order == Order::largest_value) {
            DenseGrowth<Format, Order::largest_value>(pattern, data, count, grid, threads).run();
        } else {
            DenseGrowth<Format, Order::largest_magnitude>(pattern, data, count, grid, threads).run();
        }
    });
}

}  // namespace sparsekern
