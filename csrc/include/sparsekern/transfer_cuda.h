// transfer on the GPU: moves vectors of nnz values from one pattern to another.
#pragma once

#include <cstdint>

#include "sparsekern/cuda_status.h"
#include "sparsekern/pattern.h"

struct CUstream_st;

namespace sparsekern::cuda {

// A pattern in device memory: its packed buffer (16-byte aligned, header included) and, because the header
// cannot be read from here, the sizes that the header states.
struct DevicePattern {
    PatternSizes sizes;
    const int32_t* data = nullptr;
};

// One vector: device memory of from.sizes.nnz and to.sizes.nnz elements of 2, 4 or 8 bytes.
struct TransferVector {
    const void* from_values = nullptr;
    void* to_values = nullptr;
    int64_t element_size = 0;
};

// For each vector, to_values[i] = from_values[j] where value i of `to` and value j of `from` sit at the same
// position of the matrix, and 0 where `from` is not active. It equals pack(unpack(from_values, from), to),
// bit for bit.
//
//   from     the pattern of from_values; the same rows, columns and tile size as `to`
//   to       the pattern of to_values
//   vectors  host memory, read before the function returns; no to_values is part of its from_values, and
//   every
//            element of it is written
//   stream   where the work is queued; null is the default stream
//
// Where a value comes from is found once for up to eight vectors. The work runs on the device that owns the
// buffers, whichever is current; all must be on one. It is queued, not waited for. A pattern without values
// may have null pointers for its values.
Status transfer(const DevicePattern& from, const DevicePattern& to, const TransferVector* vectors,
                int64_t count, CUstream_st* stream);

}  // namespace sparsekern::cuda
