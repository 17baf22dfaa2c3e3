// Panels of a batch: runs of samples for each feature, in the type that kernels compute in.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel_table.h"
#include "sparsekern/linear.h"

namespace sparsekern {

// Samples that share one panel, as a whole number of vectors: as many as the registers take, spread evenly.
struct PanelShape {
    int64_t panels;
    int64_t width;

    PanelShape(int64_t samples, int64_t lanes, int64_t max_vectors) {
        panels = (samples + lanes * max_vectors - 1) / (lanes * max_vectors);
        const int64_t share = panels > 0 ? (samples + panels - 1) / panels : 0;
        width = (share + lanes - 1) / lanes * lanes;
        panels = width > 0 ? (samples + width - 1) / width : 0;
    }
    int64_t begin(int64_t panel) const { return panel * width; }
    int64_t count(int64_t panel, int64_t samples) const { return std::min(width, samples - panel * width); }
};

// How many threads some work is worth: `products` multiplications and `elements` packed or unpacked. Below
// some 20 microseconds for each thread, waking them costs more than they save. In floating point, since
// products of three sizes may not fit 64 bits.
inline int worthwhile_threads(int threads, double products, double elements) {
    const double nanoseconds = products / 25 + elements / 3;
    return static_cast<int>(std::min<double>(threads, nanoseconds / 25000 + 1));
}

// The threads that a product of a pattern's matrix with a batch is worth, and each of its gradients.
inline int linear_threads(int threads, const PatternSizes& pattern, int64_t samples) {
    return worthwhile_threads(
        threads, static_cast<double>(samples) * static_cast<double>(pattern.nnz),
        static_cast<double>(samples) * static_cast<double>(pattern.rows + pattern.cols));
}

// `count` samples of a matrix from sample `begin`, with `features` of their features.
template <class T>
Samples<const T> samples_of(const InputMatrix& m, int64_t begin, int64_t count, int64_t feature,
                            int64_t features) {
    const T* data = static_cast<const T*>(m.data) + begin * m.row_stride + feature * m.col_stride;
    return {data, m.row_stride, m.col_stride, count, features};
}

template <class T>
Samples<T> samples_of(const OutputMatrix& m, int64_t begin, int64_t count, int64_t feature,
                      int64_t features) {
    T* data = static_cast<T*>(m.data) + begin * m.row_stride + feature * m.col_stride;
    return {data, m.row_stride, m.col_stride, count, features};
}

}  // namespace sparsekern
