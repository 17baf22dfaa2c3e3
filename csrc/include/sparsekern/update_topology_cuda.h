// update_topology on the GPU: all layers of a model in one sequence of kernels.
#pragma once

#include <cstdint>

#include "sparsekern/transfer_cuda.h"
#include "sparsekern/update_topology.h"

namespace sparsekern::cuda {

// One layer. All pointers are device memory; those of scores and values are aligned to their elements.
struct TopologyLayer {
    DevicePattern pattern;
    int64_t cin = 0;        // as in the pattern's header
    int64_t positions = 1;  // kh * kw
    FloatVector values;     // nnz
    GrowthScores scores;
    int64_t count = 0;
    int32_t* result = nullptr;  // the words of a complete grid, aligned to 16 bytes
};

// Bytes of scratch that update_topology needs for these layers: O(layers * bins + counts); 0 for bad sizes.
int64_t update_topology_workspace(const TopologyLayer* layers, int64_t count);

// What sparsekern::update_topology writes, bit for bit, for each layer. Listed positions outside the matrix
// or active are passed over; the result has nnz positions only when enough others are listed, each once.
//
//   layers     host memory, read before the function returns
//   workspace  device memory of `workspace_bytes`, aligned to 16 bytes, in use until the stream is done with
//   it stream     where the work is queued; null is the default stream
//
// Nothing is allocated and nothing is waited for, so that a CUDA graph can record it.
Status update_topology(const TopologyLayer* layers, int64_t count, Order order, void* workspace,
                       int64_t workspace_bytes, CUstream_st* stream);

}  // namespace sparsekern::cuda
