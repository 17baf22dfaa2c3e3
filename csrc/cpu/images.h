// Images laid out so that a convolution reads runs: padded, and split by the phase of the stride.
//
// With stride s and dilation d, output pixel o meets input pixel o s + k d - padding for kernel tap k. In the plane
// of phase (k d) mod s that is pixel o + (k d) div s, so every tap is one offset into a plane, and consecutive
// output pixels read consecutive memory. Output pixels are numbered as if their rows were as wide as a plane's;
// the surplus columns are computed and dropped (or hold zeros where a gradient is read).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "kernel_table.h"
#include "panels.h"
#include "sparsekern/conv2d.h"

namespace sparsekern {

// One axis of a convolution: which phases its taps need, and where each tap lands.
struct ConvAxis {
    int64_t extent = 0;
    int64_t out = 0;
    int64_t stride = 1;
    int64_t padding = 0;
    std::vector<int64_t> phases;     // the phases in use
    std::vector<int64_t> tap_phase;  // per tap: index into `phases`
    std::vector<int64_t> tap_shift;  // per tap: offset in its plane
    int64_t plane = 0;               // extent of a plane

    ConvAxis(const Conv2dShape& shape, int axis, int64_t kernel)
        : extent(axis == 0 ? shape.height : shape.width),
          out(shape.out_extent(axis, kernel)),
          stride(shape.stride[axis]),
          padding(shape.padding[axis]) {
        for (int64_t k = 0; k < kernel; ++k) {
            const int64_t phase = k * shape.dilation[axis] % stride;
            const auto found = std::find(phases.begin(), phases.end(), phase);
            tap_phase.push_back(found - phases.begin());
            if (found == phases.end()) phases.push_back(phase);
            tap_shift.push_back(k * shape.dilation[axis] / stride);
        }
        plane = out + tap_shift.back();
    }

    // The input coordinate of plane coordinate `i` in a phase; outside 0 .. extent - 1 is padding.
    int64_t source(int64_t phase, int64_t i) const { return i * stride + phases[phase] - padding; }

    // The plane coordinates [begin, end) of a phase that fall inside the input.
    void inside(int64_t phase, int64_t* begin, int64_t* end) const {
        const int64_t first = padding - phases[phase];
        *begin = std::clamp<int64_t>(first > 0 ? (first + stride - 1) / stride : 0, 0, plane);
        const int64_t last = extent - 1 + first;
        *end = std::clamp<int64_t>(last >= 0 ? last / stride + 1 : 0, *begin, plane);
    }
};

// The geometry that the three convolution kernels share.
struct ConvLayout {
    ConvAxis vertical;
    ConvAxis horizontal;
    int64_t channels;       // of the input, over all groups
    int64_t plane_size;     // rounded up to whole vectors
    int64_t channel_size;   // all planes of a channel
    int64_t image_size;     // all channels, and what the last vector reads beyond them
    int64_t pixels;         // output pixels, surplus columns counted
    PanelShape panels;      // how they are cut
    int64_t pixel_run;      // as many pixels as whole panels hold

    ConvLayout(const PatternView& pattern, const Conv2dShape& shape, int64_t lanes);

    int64_t out_size() const { return vertical.out * horizontal.out; }

    // Offsets of the columns (kh, kw, cin) of a weight into an image, for whole tiles.
    std::vector<int64_t> column_offsets(const PatternView& pattern) const;
};

// Copies `rows` rows of `count` samples into rows of `plane` elements that begin at `to`, 0 where no sample falls,
// up to the element at `end`.
template <class T>
void pack_rows(const KernelTable<AccumulateType<T>>& table, const Samples<const T>& from, AccumulateType<T>* to,
               int64_t plane, AccumulateType<T>* end) {
    using A = AccumulateType<T>;
    if (from.features == 0 || from.count == 0) return std::fill(to, end, A(0));
    // The last row alone might reach beyond `end` with the zeros behind its samples.
    Samples<const T> part = from;
    part.features = from.features - 1;
    pack(table, part, to, plane);
    part.data += part.features * from.feature_stride;
    A* const last = to + part.features * plane;
    part.features = 1;
    pack(table, part, last, from.count);
    std::fill(last + from.count, end, A(0));
}

template <class T>
void pack_channel(const KernelTable<AccumulateType<T>>& table, const ConvLayout& layout, const T* from,
                  AccumulateType<T>* to) {
    using A = AccumulateType<T>;
    const ConvAxis& v = layout.vertical;
    const ConvAxis& h = layout.horizontal;
    for (int64_t pv = 0; pv < static_cast<int64_t>(v.phases.size()); ++pv) {
        for (int64_t ph = 0; ph < static_cast<int64_t>(h.phases.size()); ++ph, to += layout.plane_size) {
            int64_t top, bottom, left, right;
            v.inside(pv, &top, &bottom);
            h.inside(ph, &left, &right);
            const T* source = from + v.source(pv, top) * h.extent + h.source(ph, left);
            A* const first = to + top * h.plane + left;
            std::fill(to, first, A(0));
            pack_rows<T>(table, {source, h.stride, v.stride * h.extent, right - left, bottom - top}, first, h.plane,
                         to + layout.plane_size);
        }
    }
}

// The inverse of pack_channel: input pixels that no tap reaches become 0.
template <class T>
void unpack_channel(const KernelTable<AccumulateType<T>>& table, const ConvLayout& layout,
                    const AccumulateType<T>* from, T* to) {
    const ConvAxis& v = layout.vertical;
    const ConvAxis& h = layout.horizontal;
    std::fill(to, to + v.extent * h.extent, T{});
    for (int64_t pv = 0; pv < static_cast<int64_t>(v.phases.size()); ++pv) {
        for (int64_t ph = 0; ph < static_cast<int64_t>(h.phases.size()); ++ph, from += layout.plane_size) {
            int64_t top, bottom, left, right;
            v.inside(pv, &top, &bottom);
            h.inside(ph, &left, &right);
            T* target = to + v.source(pv, top) * h.extent + h.source(ph, left);
            unpack(table, from + top * h.plane + left, h.plane,
                   Samples<T>{target, h.stride, v.stride * h.extent, right - left, bottom - top});
        }
    }
}

// Output pixels of one channel as a run with zeros in the surplus columns.
template <class T>
void pack_pixels(const KernelTable<AccumulateType<T>>& table, const ConvLayout& layout, const T* from,
                 AccumulateType<T>* to) {
    const int64_t out = layout.horizontal.out;
    pack_rows<T>(table, {from, 1, out, out, layout.vertical.out}, to, layout.horizontal.plane,
                 to + layout.pixel_run);
}

// Packed images (or packed output pixels) of a stretch of the batch; `pack_one` packs one channel of one image.
template <class A>
class ImageStack {
   public:
    ImageStack(int64_t channels, int64_t channel_size, int64_t image_size, int64_t capacity)
        : channels_(channels), channel_size_(channel_size), image_size_(image_size), data_(image_size * capacity) {}

    A* image(int64_t index) { return data_.data() + index * image_size_; }
    const A* image(int64_t index) const { return data_.data() + index * image_size_; }

    template <class PackOne>
    void fill(int64_t count, int threads, PackOne&& pack_one) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t task = 0; task < count * channels_; ++task) {
            const int64_t index = task / channels_;
            const int64_t channel = task % channels_;
            A* const to = image(index) + channel * channel_size_;
            pack_one(index, channel, to);
            if (channel == channels_ - 1) std::fill(to + channel_size_, image(index + 1), A(0));
        }
    }

   private:
    int64_t channels_;
    int64_t channel_size_;
    int64_t image_size_;
    Buffer<A> data_;
};

// Throws unless the weight, the geometry and the three buffers fit one another.
void check_conv2d(const PatternView& pattern, const Conv2dShape& shape, const char* x_name, int64_t x_count,
                  const char* y_name, int64_t y_count, int threads);

}  // namespace sparsekern
