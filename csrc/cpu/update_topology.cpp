// update_topology: checks, then drop, grow, and the index of the new pattern.
#include "sparsekern/update_topology.h"

#include <algorithm>
#include <limits>
#include <string>

#include "check.h"
#include "topology_drop.h"
#include "topology_grow.h"
#include "topology_search.h"

namespace sparsekern {
namespace {

void check_vector(const char* name, const FloatVector& vector, int64_t count) {
    with_format(vector.type, [](auto) {});
    check_equal(name, "length", count, vector.count);
    check_address(name, vector.data, count, float_bits(vector.type) / 8);
}

void check_scores(const PatternView& pattern, const GrowthScores& scores, int64_t count) {
    const int64_t elements = pattern.rows * pattern.cols;
    if (!scores.is_listed) return check_vector("scores", scores.dense, elements);
    check_vector("active", scores.active, pattern.nnz);
    check_vector("scores", scores.listed, scores.listed.count);
    if (scores.active.type != scores.listed.type) {
        throw std::invalid_argument("active: expected the type of scores");
    }
    check_address("positions", scores.positions, scores.listed.count, sizeof(int64_t));
    const int64_t least = std::min(count, elements - pattern.nnz);
    if (scores.listed.count < least) {
        throw std::invalid_argument("positions: expected at least " + std::to_string(least) + ", got " +
                                    std::to_string(scores.listed.count));
    }
}

}  // namespace

int64_t update_topology_words(const PatternView& pattern) {
    return pattern_sections(complete_sizes(pattern.rows, pattern.cols, pattern.tile_size, pattern.nnz))
        .total_words;
}

void update_topology(const PatternView& pattern, const FloatVector& values, const GrowthScores& scores,
                     int64_t count, Order order, int32_t* result, int64_t words, int threads) {
    check_threads(threads);
    check_vector("values", values, pattern.nnz);
    if (count < 0 || count > pattern.nnz) {
        throw std::invalid_argument("count: expected 0 to " + std::to_string(pattern.nnz) + ", got " +
                                    std::to_string(count));
    }
    check_scores(pattern, scores, count);
    if (order != Order::largest_magnitude && order != Order::largest_value) {
        throw std::invalid_argument("order: expected largest_magnitude or largest_value");
    }
    if (pattern.tile_rows * pattern.tile_cols > std::numeric_limits<int32_t>::max()) {
        throw std::invalid_argument("a pattern can hold at most 2147483647 tiles");
    }
    check_equal("result", "words", update_topology_words(pattern), words);
    check_address("result", result, words, sizeof(int64_t));
    TopologyGrid grid(pattern, result);
    drop(pattern, values, count, &grid, threads);
    if (count > 0 && scores.is_listed) grow_listed(pattern, scores, count, order, &grid, threads);
    if (count > 0 && !scores.is_listed) grow_dense(pattern, scores.dense, count, order, &grid, threads);
    grid.finish(pattern, threads);
}

}  // namespace sparsekern
