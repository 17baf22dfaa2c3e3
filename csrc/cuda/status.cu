// The text of every status that a GPU launcher returns.
#include <cuda_runtime.h>

#include "sparsekern/cuda_status.h"

namespace sparsekern::cuda {

const char* status_message(Status status) {
    switch (status) {
        case Status::ok:
            return "success";
        case Status::bad_element_size:
            return "element_size: expected 2, 4 or 8 bytes";
        case Status::bad_pattern_sizes:
            return "sizes: expected those of a valid pattern (tile size 8, 16, 32 or 64, counts in range)";
        case Status::different_shapes:
            return "from, to: expected two patterns of the same rows and columns";
        case Status::different_tile_sizes:
            return "from, to: expected two patterns of the same tile size";
        case Status::null_pointer:
            return "expected a pointer where there is data, got null";
        case Status::misaligned_pointer:
            return "expected pattern data aligned to 16 bytes and values aligned to their element size";
        case Status::not_device_memory:
            return "expected pointers to memory of a CUDA device";
        case Status::different_devices:
            return "expected all pointers on one CUDA device";
        case Status::overlapping_buffers:
            return "expected an output that is no part of the input";
        case Status::bad_type:
            return "type: expected float16, bfloat16, float32 or float64, one for active and listed scores";
        case Status::bad_count:
            return "count: expected 0 to nnz positions, and vectors as long as their pattern has values";
        case Status::bad_order:
            return "order: expected largest_magnitude or largest_value";
        case Status::too_few_candidates:
            return "positions: expected at least as many as grow, or all inactive ones";
        case Status::bad_workspace:
            return "workspace: expected the bytes that update_topology_workspace asks for, aligned to 16";
        case Status::bad_weight_type:
            return "type: expected float16, bfloat16, float32 or int8, for the cutlass layout not float32";
        case Status::bad_weight_sizes:
            return "rows, columns: expected columns in fours, and for transposable masks rows in fours; for "
                   "the "
                   "cutlass layout rows in multiples of 32 and columns of 64 (int8: 16 and 128)";
        case Status::bad_layout:
            return "layout: expected rows or cutlass";
        case Status::bad_transpose:
            return "values_t, metadata_t: expected both or neither, and neither without transposable masks";
    }
    return cudaGetErrorString(static_cast<cudaError_t>(status));
}

}  // namespace sparsekern::cuda
