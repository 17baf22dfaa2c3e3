// update_topology: drop the smallest active weights of a layer and grow as many where a score is largest.
#pragma once

#include <cstdint>

#include "sparsekern/pattern.h"
#include "sparsekern/selection.h"

namespace sparsekern {

// A vector of some floating-point type.
struct FloatVector {
    FloatType type = FloatType::float32;
    const void* data = nullptr;
    int64_t count = 0;
};

// Where a layer may grow, and how much each position is worth: `dense` scores, contiguous in the weight's own
// shape; or, where `positions` are given, `active` scores in the order of the values and `listed` ones for
// the inactive positions named by their matrix index, row * cols + column.
struct GrowthScores {
    bool is_listed = false;
    FloatVector dense;
    FloatVector active;
    FloatVector listed;
    const int64_t* positions = nullptr;
};

// Words of the pattern that update_topology writes: the complete grid of tiles, whatever the positions.
int64_t update_topology_words(const PatternView& pattern);

// Writes the pattern of one layer after `count` positions were exchanged:
//
//   drop   of the active positions, the `count` with the smallest |value|
//   grow   of those that are not kept, the `count` with the largest score, or |score| for largest_magnitude
//
// Ties go to the position that comes first in the matrix, row by row. NaN counts as larger than infinity and
// -0.0 as 0.0. nnz stays as it is. Scratch is O(count + rows + bins). The result depends on no number of
// threads.
//
// Throws std::invalid_argument when sizes do not fit, a listed position is outside, active or named twice, or
// too few are listed; std::bad_alloc when memory is short.
void update_topology(const PatternView& pattern, const FloatVector& values, const GrowthScores& scores,
                     int64_t count, Order order, int32_t* result, int64_t words, int threads);

}  // namespace sparsekern
