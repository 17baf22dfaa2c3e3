// Building a packed pattern: rows of bits come from a source, are counted once and then cut into tiles.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sparsekern/pattern.h"

namespace sparsekern {

// A weight's own shape: (rows, cin) when dims is 2, (rows, cin, kh, kw) when it is 4.
struct WeightShape {
    int64_t dims = 2;
    int64_t rows = 0;
    int64_t cin = 0;
    int64_t kh = 1;
    int64_t kw = 1;

    int64_t cols() const { return cin * kh * kw; }
};

// Throws std::invalid_argument unless all sizes are positive, fit an int32 and agree with dims.
void check_weight_shape(const WeightShape& shape);

// Gives the rows of the weight matrix as bits, columns in the pattern's (kh, kw, cin) order.
class RowSource {
public:
    virtual ~RowSource() = default;

    // Writes all ceil(cols / 64) words of one row: bit k % 64 of word k / 64 is set where column k is active,
    // bits beyond the last column are 0. Called from several threads at once, and twice for each row.
    virtual void read_row(int64_t row, uint64_t* words) const = 0;
};

// Which tiles a builder stores: those with an active position, or the whole grid.
enum class StoredTiles { nonempty, all };

// Cuts a source into tiles. The constructor reads every row once to count tiles and values, so that the
// caller can allocate `words()` int32 words; `fill` reads every row again and writes the packed pattern.
class PatternBuilder {
public:
    PatternBuilder(const WeightShape& shape, int64_t tile_size, std::unique_ptr<RowSource> source,
                   int threads, StoredTiles stored = StoredTiles::nonempty);

    int64_t words() const { return pattern_sections(sizes_).total_words; }
    const PatternSizes& sizes() const { return sizes_; }

    void fill(int32_t* data, int64_t words, int threads) const;

private:
    void count(int threads);
    void fill_header(int32_t* data) const;
    void fill_tile_row(int64_t tile_row, uint64_t* scratch, int32_t* data) const;

    bool is_stored(uint64_t tile_bits) const { return tile_bits != 0 || stored_ == StoredTiles::all; }

    WeightShape shape_;
    StoredTiles stored_;
    PatternSizes sizes_;
    std::unique_ptr<RowSource> source_;
    std::vector<int32_t> tile_row_ptr_;    // tile_rows + 1
    std::vector<int64_t> tile_row_start_;  // tile_rows + 1: first value of each tile row
};

// Active where `mask` is not zero. `mask` is contiguous in the weight's own shape and is read until the
// builder has been filled; `elements` must be the number of its bytes.
std::unique_ptr<RowSource> mask_source(const unsigned char* mask, int64_t elements, const WeightShape& shape);

// Exactly `count` positions of a rows x cols matrix, uniformly random over all subsets of that size. The
// result depends on the arguments only: not on the number of threads, nor on the platform.
std::unique_ptr<RowSource> random_source(int64_t rows, int64_t cols, int64_t count, uint64_t seed,
                                         int threads);

// Exactly `count` whole blocks of block_size x block_size positions (less at the last row and column of
// blocks), uniformly random over all such choices.
std::unique_ptr<RowSource> random_block_source(int64_t rows, int64_t cols, int64_t block_size, int64_t count,
                                               uint64_t seed, int threads);

}  // namespace sparsekern
