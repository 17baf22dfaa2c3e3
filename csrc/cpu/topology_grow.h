// The second half of update_topology: which positions become active.
#pragma once

#include "sparsekern/update_topology.h"
#include "topology_grid.h"

namespace sparsekern {

// Sets `count` bits more of the grid, whose bits are those that stay: where the dense scores are largest.
void grow_dense(const PatternView& pattern, const FloatVector& scores, int64_t count, Order order,
                TopologyGrid* grid, int threads);

// The same among the dropped positions and those listed.
void grow_listed(const PatternView& pattern, const GrowthScores& scores, int64_t count, Order order,
                 TopologyGrid* grid, int threads);

}  // namespace sparsekern
