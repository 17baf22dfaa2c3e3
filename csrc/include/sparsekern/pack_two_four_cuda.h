// 2:4 pruning and packing on the GPU: the mask of a weight, its packing and that of its transpose, in one
// pass.
#pragma once

#include <cstdint>

#include "sparsekern/cuda_status.h"
#include "sparsekern/two_four.h"

struct CUstream_st;

namespace sparsekern::cuda {

// How the kept weights of a matrix of M rows and C columns are laid out. In both layouts `values` is (M, C /
// 2), the two of each group in column order.
enum class TwoFourLayout : int32_t {
    // Metadata is (M, metadata_bytes(C)), the nibbles as two_four.h has them.
    rows = 0,
    // What CUTLASS multiplies, and PyTorch's `_sparse_semi_structured_*` with it. Metadata has the same
    // bytes,
    // as int16 (M, C / 16), or int32 (M, C / 32) for int8, moved within and among blocks of 32 x 32 weights
    // (16 x 64 for int8). A kept zero is not told from a weight that is not kept, as in PyTorch's
    // `sparse_semi_structured_from_dense_cutlass`: the metadata of a group with less than two others names
    // columns of PyTorch's choice. M is a multiple of 32 (int8: 16) and C of 64 (int8: 128).
    cutlass = 1,
};

// One weight. All pointers are device memory, aligned to 16 bytes.
struct TwoFourWeight {
    WeightType type = WeightType::float32;  // not float64
    int64_t rows = 0;
    int64_t columns = 0;           // a multiple of 4
    const void* weight = nullptr;  // (rows, columns), contiguous
    void* values = nullptr;
    void* metadata = nullptr;
    void* values_t = nullptr;  // of the transpose, in the same layout; null for none
    void* metadata_t = nullptr;
};

// Prunes and packs each weight, reading it once. What is kept is as on the CPU, bit for bit:
//
//   transposable  false: the two largest magnitudes of each group. true: of each tile of 4 x 4, two in each
//   row and each
//                 column; rows are a multiple of 4 then. The transposes of weights are packed only then.
//   weights       host memory, read before the function returns
//   stream        where the work is queued; null is the default stream
//
// Nothing is allocated and nothing is waited for, so that a CUDA graph can record it. NaN and infinity can
// therefore not be refused: NaN counts as larger than infinity, and infinity as larger than any sum of finite
// weights of a tile, so that they are kept wherever a mask can keep them and show in what is computed from
// the packed weight.
Status pack_two_four(const TwoFourWeight* weights, int64_t count, bool transposable, TwoFourLayout layout,
                     CUstream_st* stream);

}  // namespace sparsekern::cuda
