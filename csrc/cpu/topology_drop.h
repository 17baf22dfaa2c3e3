// The first half of update_topology: which active positions stay.
#pragma once

#include "sparsekern/update_topology.h"
#include "topology_grid.h"

namespace sparsekern {

// Sets the bits of the grid to the active positions but the `count` whose values are smallest.
void drop(const PatternView& pattern, const FloatVector& values, int64_t count, TopologyGrid* grid,
          int threads);

}  // namespace sparsekern
