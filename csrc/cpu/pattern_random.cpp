// Uniformly random subsets of exact size, of single positions or of whole blocks.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "pattern_walk.h"
#include "sparsekern/pattern_build.h"

namespace sparsekern {
namespace {

constexpr int64_t kProbabilityBits = 16;
constexpr int64_t kChunkWords = 1024;
// Below one position in this many, a sorted list is smaller and faster than a bitmap.
constexpr int64_t kListDensity = 1024;

// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014): its output function.
uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// xoshiro256** (Blackman and Vigna, 2018), one independent stream for each (seed, stream).
class Generator {
public:
    Generator(uint64_t seed, uint64_t stream) {
        uint64_t z = mix(seed + 0x9E3779B97F4A7C15ull) ^ mix(stream + 0xD1B54A32D192ED03ull);
        for (uint64_t& word : state_) word = mix(z += 0x9E3779B97F4A7C15ull);
    }

    uint64_t next() {
        const uint64_t result = rotate(state_[1] * 5, 7) * 9;
        const uint64_t shifted = state_[1] << 17;
        state_[2] ^= state_[0];
        state_[3] ^= state_[1];
        state_[1] ^= state_[2];
        state_[0] ^= state_[3];
        state_[2] ^= shifted;
        state_[3] = rotate(state_[3], 45);
        return result;
    }

    // Uniform in [0, bound) without bias: Lemire, "Fast random integer generation in an interval" (2019).
    uint64_t below(uint64_t bound) {
        unsigned __int128 product = static_cast<unsigned __int128>(next()) * bound;
        if (static_cast<uint64_t>(product) < bound) {
            const uint64_t threshold = (0 - bound) % bound;
            while (static_cast<uint64_t>(product) < threshold) {
                product = static_cast<unsigned __int128>(next()) * bound;
            }
        }
        return static_cast<uint64_t>(product >> 64);
    }

private:
    static uint64_t rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

    uint64_t state_[4];
};

// Each bit is 1 with probability numerator / 2^kProbabilityBits, which is below 1. Binary digits of the
// probability, lowest first: OR with a fair bit maps p to (1 + p) / 2, AND maps it to p / 2.
uint64_t bernoulli_bits(Generator& generator, int64_t numerator) {
    uint64_t word = 0;
    if (numerator == 0) return word;
    for (int64_t digit = __builtin_ctzll(static_cast<uint64_t>(numerator)); digit < kProbabilityBits;
         ++digit) {
        const uint64_t fair = generator.next();
        word = (numerator >> digit) & 1 ? word | fair : word & fair;
    }
    return word;
}

// A bitmap of `positions` bits with exactly `count` set, count <= positions / 2. Independent bits come first,
// in chunks with a generator each, so that threads can share the work; then random positions are added or
// taken away until the count is right. Both steps treat all positions alike, so every subset of that size is
// equally likely.
std::vector<uint64_t> random_bitmap(int64_t positions, int64_t count, uint64_t seed, int threads) {
    const int64_t words = (positions + 63) / 64;
    const int64_t chunks = (words + kChunkWords - 1) / kChunkWords;
    const auto numerator =
        static_cast<int64_t>((static_cast<unsigned __int128>(count) << kProbabilityBits) / positions);
    std::vector<uint64_t> bitmap(static_cast<size_t>(words));
    int64_t found = 0;
    threads = useful_threads(threads, words * kProbabilityBits);
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : found)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        Generator generator(seed, static_cast<uint64_t>(chunk) + 1);
        for (int64_t w = chunk * kChunkWords; w < std::min(words, (chunk + 1) * kChunkWords); ++w) {
            bitmap[w] = bernoulli_bits(generator, numerator) & low_bits(positions - w * 64);
            found += popcount64(bitmap[w]);
        }
    }
    Generator generator(seed, 0);
    const bool add = found < count;
    for (int64_t missing = add ? count - found : found - count; missing > 0;) {
        const uint64_t position = generator.below(static_cast<uint64_t>(positions));
        const uint64_t bit = 1ull << (position % 64);
        const bool set = (bitmap[position / 64] & bit) != 0;
        if (set == add) continue;
        bitmap[position / 64] ^= bit;
        --missing;
    }
    return bitmap;
}

// Exactly `count` different positions, ascending. Duplicates are drawn again until none is missing.
std::vector<int64_t> random_list(int64_t positions, int64_t count, uint64_t seed) {
    std::vector<int64_t> list;
    list.reserve(static_cast<size_t>(count));
    Generator generator(seed, 0);
    while (static_cast<int64_t>(list.size()) < count) {
        const int64_t missing = count - static_cast<int64_t>(list.size());
        for (int64_t i = 0; i < missing; ++i) {
            list.push_back(static_cast<int64_t>(generator.below(static_cast<uint64_t>(positions))));
        }
        std::sort(list.begin(), list.end());
        list.erase(std::unique(list.begin(), list.end()), list.end());
    }
    return list;
}

class BitmapRows final : public RowSource {
public:
    BitmapRows(std::vector<uint64_t> bitmap, int64_t cols) : bitmap_(std::move(bitmap)), cols_(cols) {}

    void read_row(int64_t row, uint64_t* words) const override {
        const int64_t first = row * cols_;
        const int64_t shift = first % 64;
        const int64_t last_word = static_cast<int64_t>(bitmap_.size()) - 1;
        for (int64_t k = 0; k < cols_; k += 64) {
            const int64_t at = first / 64 + k / 64;
            uint64_t word = bitmap_[at] >> shift;
            if (shift != 0 && at < last_word) word |= bitmap_[at + 1] << (64 - shift);
            words[k / 64] = word & low_bits(cols_ - k);
        }
    }

private:
    std::vector<uint64_t> bitmap_;
    int64_t cols_;
};

class ListRows final : public RowSource {
public:
    ListRows(std::vector<int64_t> list, int64_t cols) : list_(std::move(list)), cols_(cols) {}

    void read_row(int64_t row, uint64_t* words) const override {
        std::fill(words, words + (cols_ + 63) / 64, 0);
        for (auto at = std::lower_bound(list_.begin(), list_.end(), row * cols_);
             at != list_.end() && *at < (row + 1) * cols_; ++at) {
            const int64_t k = *at - row * cols_;
            words[k / 64] |= 1ull << (k % 64);
        }
    }

private:
    std::vector<int64_t> list_;
    int64_t cols_;
};

class InvertedRows final : public RowSource {
public:
    InvertedRows(std::unique_ptr<RowSource> source, int64_t cols) : source_(std::move(source)), cols_(cols) {}

    void read_row(int64_t row, uint64_t* words) const override {
        source_->read_row(row, words);
        for (int64_t k = 0; k < cols_; k += 64) words[k / 64] = ~words[k / 64] & low_bits(cols_ - k);
    }

private:
    std::unique_ptr<RowSource> source_;
    int64_t cols_;
};

// Each bit of the grid's rows stands for a block of positions.
class BlockRows final : public RowSource {
public:
    BlockRows(std::unique_ptr<RowSource> grid, int64_t block_size, int64_t cols)
        : grid_(std::move(grid)), block_size_(block_size), cols_(cols) {}

    void read_row(int64_t row, uint64_t* words) const override {
        const int64_t row_words = (cols_ + 63) / 64;
        const int64_t grid_cols = (cols_ + block_size_ - 1) / block_size_;
        // The grid's row goes to the front of the buffer and is spread from its end, so that no block is
        // overwritten before it is read: block b fills bits from b * block_size >= b on.
        grid_->read_row(row / block_size_, words);
        std::fill(words + (grid_cols + 63) / 64, words + row_words, 0);
        for (int64_t b = grid_cols - 1; b >= 0; --b) {
            const bool active = (words[b / 64] >> (b % 64)) & 1;
            words[b / 64] &= ~(1ull << (b % 64));
            if (active) set_range(words, b * block_size_, std::min(cols_, (b + 1) * block_size_));
        }
    }

private:
    static void set_range(uint64_t* words, int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t count = std::min<int64_t>(end - begin, 64 - begin % 64);
            words[begin / 64] |= low_bits(count) << (begin % 64);
            begin += count;
        }
    }

    std::unique_ptr<RowSource> grid_;
    int64_t block_size_;
    int64_t cols_;
};

}  // namespace

std::unique_ptr<RowSource> random_source(int64_t rows, int64_t cols, int64_t count, uint64_t seed,
                                         int threads) {
    check_weight_shape({2, rows, cols, 1, 1});
    const int64_t positions = rows * cols;
    check_threads(threads);
    if (count < 0 || count > positions) {
        throw std::invalid_argument("count must be between 0 and " + std::to_string(positions) + ", got " +
                                    std::to_string(count));
    }
    const int64_t smaller = std::min(count, positions - count);
    std::unique_ptr<RowSource> source;
    if (smaller <= positions / kListDensity) {
        source = std::make_unique<ListRows>(random_list(positions, smaller, seed), cols);
    } else {
        source = std::make_unique<BitmapRows>(random_bitmap(positions, smaller, seed, threads), cols);
    }
    if (smaller == count) return source;
    return std::make_unique<InvertedRows>(std::move(source), cols);
}

std::unique_ptr<RowSource> random_block_source(int64_t rows, int64_t cols, int64_t block_size, int64_t count,
                                               uint64_t seed, int threads) {
    check_weight_shape({2, rows, cols, 1, 1});
    if (block_size < 1 || block_size > 65536) {
        throw std::invalid_argument("block_size must be between 1 and 65536, got " +
                                    std::to_string(block_size));
    }
    const int64_t grid_rows = (rows + block_size - 1) / block_size;
    const int64_t grid_cols = (cols + block_size - 1) / block_size;
    return std::make_unique<BlockRows>(random_source(grid_rows, grid_cols, count, seed, threads), block_size,
                                       cols);
}

}  // namespace sparsekern
