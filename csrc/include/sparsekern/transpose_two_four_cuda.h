// The packing of a 2:4 weight's transpose from its own, on the GPU.
#pragma once

#include <cstdint>

#include "sparsekern/cuda_status.h"
#include "sparsekern/two_four.h"

struct CUstream_st;

namespace sparsekern::cuda {

// One weight (rows, columns), both multiples of 4, packed by rows with a transposable mask: two are kept in
// each row and each column of every tile of 4 x 4. All pointers are device memory, aligned to 16 bytes.
struct PackedWeight {
    int64_t element_size = 0;  // 1, 2 or 4 bytes
    int64_t rows = 0;
    int64_t columns = 0;
    const void* values = nullptr;    // (rows, columns / 2)
    const void* metadata = nullptr;  // (rows, metadata_bytes(columns))
    void* values_t = nullptr;        // (columns, rows / 2)
    void* metadata_t = nullptr;      // (columns, metadata_bytes(rows))
};

// Writes values_t and metadata_t, the packing of the transpose: values are copied bit for bit. Where a mask
// is not transposable, so are the results of no use, and nothing else is touched. `weights` are host memory,
// read before the function returns; the work is queued on `stream`, where null is the default stream. Nothing
// is allocated and nothing is waited for, so that a CUDA graph can record it.
Status transpose_two_four(const PackedWeight* weights, int64_t count, CUstream_st* stream);

}  // namespace sparsekern::cuda
