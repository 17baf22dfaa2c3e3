// Where a pattern should grow: the inactive positions with the largest dense gradient, on the CPU.
//
// The gradient is never stored. Each pass computes it anew, block by block, and keeps something small: how
// many keys there are of each digit, or the positions above a threshold. A position's key is the bits of its
// gradient's magnitude in the type that sums are held in, which order as the magnitudes do; NaN is above all.
// It is the same in every pass, since its sum is added up in the same order.
#pragma once

#include <cstdint>
#include <memory>

#include "sparsekern/conv2d.h"
#include "sparsekern/dtype.h"
#include "sparsekern/linear.h"
#include "sparsekern/pattern.h"

namespace sparsekern {

// The digit of a key that begins `shift` bits from its end and takes `bits` bits, 16 at most; of keys that
// are `prefix` above it.
struct KeyDigit {
    int64_t prefix;
    int shift;
    int bits;
};

// Where candidates go, in no order: n * cols + k, and |gradient| in float32, or float64 for such inputs.
struct CandidateOutput {
    OutputValues positions;  // int64
    OutputValues scores;
};

// Passes over the gradient of one problem. They throw std::invalid_argument when a size does not fit, and
// read what they were made from: the pattern and the tensors have to outlive them.
class GrowCandidates {
public:
    virtual ~GrowCandidates() = default;

    // counts[d] = inactive positions whose key has the digit d there; `counts` holds 2^bits.
    virtual void count(const KeyDigit& digit, Values<int64_t*> counts) const = 0;

    // ties[n] = inactive positions of row n that have this key; `ties` holds the rows.
    virtual void count_ties(int64_t key, Values<int64_t*> ties) const = 0;

    // Emits the inactive positions whose key is above `least`, and in the first `tied_rows` rows those equal
    // to it. Returns how many there are; beyond the room of `to`, none is written.
    virtual int64_t emit(int64_t least, int64_t tied_rows, const CandidateOutput& to) const = 0;
};

// Of grad_y^T x.
std::unique_ptr<GrowCandidates> grow_candidates(DType dtype, const PatternView& pattern, InputMatrix grad_y,
                                                InputMatrix x, int threads);

// Of the weight of a convolution, as a matrix.
std::unique_ptr<GrowCandidates> grow_candidates_conv2d(DType dtype, const PatternView& pattern,
                                                       const Conv2dShape& shape, InputValues grad_y,
                                                       InputValues x, int threads);

}  // namespace sparsekern
