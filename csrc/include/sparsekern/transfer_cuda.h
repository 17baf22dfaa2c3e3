// transfer on the GPU: moves a vector of nnz values from one pattern to another.
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

// to_values[i] = from_values[j] where value i of `to` and value j of `from` sit at the same position of the
// matrix, and 0 where `from` is not active. It equals pack(unpack(from_values, from), to), bit for bit.
//
//   from         the pattern of from_values; the same rows, columns and tile size as `to`
//   from_values  device memory, from.sizes.nnz elements
//   to           the pattern of to_values
//   to_values    device memory, to.sizes.nnz elements, no part of from_values; every element is written
//   element_size bytes of one element: 2, 4 or 8
//   stream       where the work is queued; null is the default stream
//
// The work runs on the device that owns to_values, whichever is current; all four buffers must be there. It
// is queued, not waited for. A pattern without values may have a null pointer for its values.
Status transfer(const DevicePattern& from, const void* from_values, const DevicePattern& to, void* to_values,
                int64_t element_size, CUstream_st* stream);

}  // namespace sparsekern::cuda
