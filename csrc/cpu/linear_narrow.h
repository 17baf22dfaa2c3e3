// Products of a pattern's matrix with batches of a few samples: memory holds the weights, and reading them
// once is most of the work.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "sparsekern/linear.h"
#include "tile_matrix.h"

namespace sparsekern {

// The narrow width (see kNarrowWidths) of panels for `samples` samples of `sample_bytes`, or -1: too many.
inline int narrow_width(int64_t samples, int64_t sample_bytes) {
    if (samples == 1) return 0;
    for (int width = 1; width < kNarrowWidths; ++width) {
        if (samples * sample_bytes <= 8 << width) return width;
    }
    return -1;
}

template <class T>
bool is_narrow(int64_t samples) {
    return samples > 0 && narrow_width(samples, sizeof(AccumulateType<T>)) >= 0;
}

// What the functions of linear.h compute, for at least one sample and a batch that has a narrow width.
template <class T>
void narrow_linear(const TileMatrix& matrix, const AccumulateType<T>* values, const AccumulateType<T>* start,
                   const InputMatrix& x, const OutputMatrix& y, int threads);
template <class T>
void narrow_grad_input(const TileMatrix& matrix, const AccumulateType<T>* values, const InputMatrix& grad_y,
                       const OutputMatrix& grad_x, int threads);
template <class T>
void narrow_grad_values(const TileMatrix& matrix, const InputMatrix& grad_y, const InputMatrix& x,
                        AccumulateType<T>* out, int threads);

}  // namespace sparsekern
