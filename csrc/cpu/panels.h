// Panels of a batch: runs of samples for each feature, in the type that kernels compute in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffer.h"
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
// some 20 microseconds for each thread, waking them costs more than they save.
inline int worthwhile_threads(int threads, int64_t products, int64_t elements) {
    const int64_t nanoseconds = products / 25 + elements / 3;
    return static_cast<int>(std::min<int64_t>(threads, nanoseconds / 25000 + 1));
}

// Where each feature's run begins in a panel.
inline std::vector<int64_t> strided(int64_t count, int64_t stride) {
    std::vector<int64_t> offset(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) offset[static_cast<size_t>(i)] = i * stride;
    return offset;
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

// Room for some panels of a batch at a time, so that scratch stays small beside the batch.
template <class T>
class PanelStack {
    using A = AccumulateType<T>;
    static constexpr int64_t kLeastRun = 64;  // features

public:
    PanelStack(int64_t features, const PanelShape& shape, int64_t capacity)
        : features_(features), shape_(shape), data_(features * shape.width * capacity) {}

    // How many panels of `features` keep the scratch at about `bytes`.
    static int64_t fitting(int64_t features, const PanelShape& shape, int64_t bytes) {
        const int64_t panel_bytes =
            std::max<int64_t>(1, features * shape.width * static_cast<int64_t>(sizeof(A)));
        return std::clamp<int64_t>(bytes / panel_bytes, 1, std::max<int64_t>(1, shape.panels));
    }

    const A* panel(int64_t index) const { return data_.data() + index * features_ * shape_.width; }

    void fill(const KernelTable<A>& table, const InputMatrix& from, int64_t first, int64_t count,
              int threads) {
        // Long runs of a sample's features: they are read from memory as a stream.
        const int64_t parts = std::clamp<int64_t>(threads / count, 1, features_ / kLeastRun + 1);
#pragma omp parallel for schedule(static) num_threads(threads) if (features_ * count > 64)
        for (int64_t task = 0; task < count * parts; ++task) {
            const int64_t index = task / parts;
            const int64_t feature = features_ * (task % parts) / parts / kLeastRun * kLeastRun;
            const int64_t end = task % parts + 1 == parts
                                    ? features_
                                    : features_ * (task % parts + 1) / parts / kLeastRun * kLeastRun;
            const int64_t features = end - feature;
            const int64_t samples = shape_.count(first + index, from.rows);
            pack(table, samples_of<T>(from, shape_.begin(first + index), samples, feature, features),
                 data_.data() + (index * features_ + feature) * shape_.width, shape_.width);
        }
    }

private:
    int64_t features_;
    PanelShape shape_;
    Buffer<A> data_;
};

}  // namespace sparsekern
