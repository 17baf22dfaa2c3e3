// Images laid out so that a convolution reads runs: padded, and split by the phase of the stride.
//
// With stride s and dilation d, output pixel o meets input pixel o s + k d - padding for kernel tap k. In the
// plane of phase (k d) mod s that is pixel o + (k d) div s, so every tap is one offset into a plane, and
// consecutive output pixels read consecutive memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

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

    bool is_identity() const { return stride == 1 && padding == 0 && plane == extent; }

    // The input coordinate of plane coordinate `i` in a phase; outside 0 .. extent - 1 is padding.
    int64_t source(int64_t phase, int64_t i) const { return i * stride + phases[phase] - padding; }

    // The plane coordinates [begin, end) of a phase that fall inside the input.
    void inside(int64_t phase, int64_t* begin, int64_t* end) const {
        const int64_t first = padding - phases[phase];
        *begin = std::clamp<int64_t>(first > 0 ? (first + stride - 1) / stride : 0, 0, plane);
        const int64_t last = extent - 1 + first;
        *end = std::clamp<int64_t>(last >= 0 ? last / stride + 1 : 0, *begin, plane);
    }

    // The same over all phases.
    void inside_any(int64_t* begin, int64_t* end) const {
        *begin = plane;
        *end = 0;
        for (int64_t phase = 0; phase < static_cast<int64_t>(phases.size()); ++phase) {
            int64_t first, last;
            inside(phase, &first, &last);
            *begin = std::min(*begin, first);
            *end = std::max(*end, last);
        }
        *begin = std::min(*begin, *end);
    }
};

// A row length that keeps rows aligned to whole vectors, unless that would add many pixels to compute.
inline int64_t padded_pitch(int64_t length, int64_t lanes) {
    const int64_t whole = (length + lanes - 1) / lanes * lanes;
    return whole * 8 <= length * 9 ? whole : length;
}

// The size of a channel of at least `size` elements: an odd number of vectors, since a power of two would put
// the same pixels of all channels into the same few sets of a cache.
inline int64_t spread_size(int64_t size, int64_t lanes) {
    const int64_t vectors = (size + lanes - 1) / lanes;
    return (vectors + 1 - vectors % 2) * lanes;
}

// How the input of a convolution is laid out: one run of `channel_size` elements for each channel, with a
// plane for each phase in use.
struct ConvLayout {
    ConvAxis vertical;
    ConvAxis horizontal;
    int64_t channels;      // over all groups
    int64_t phases;        // planes of a channel
    int64_t pitch;         // from one row of a plane to the next
    int64_t plane_size;    // whole vectors, so that every channel begins aligned alike
    int64_t channel_size;  // spread over the sets of a cache

    ConvLayout(const PatternView& pattern, const Conv2dShape& shape, int64_t lanes);

    int64_t image_size() const { return channels * channel_size; }
    int64_t out_size() const { return vertical.out * horizontal.out; }
    // The plane that tap (i, j) reads, and where in it.
    int64_t tap_plane(int64_t i, int64_t j) const {
        return vertical.tap_phase[i] * static_cast<int64_t>(horizontal.phases.size()) +
               horizontal.tap_phase[j];
    }
    int64_t tap_offset(int64_t i, int64_t j) const {
        return vertical.tap_shift[i] * pitch + horizontal.tap_shift[j];
    }
    // Whether images lie in memory just as they are laid out here.
    bool is_identity() const {
        return vertical.is_identity() && horizontal.is_identity() &&
               channel_size == vertical.extent * horizontal.extent;
    }
};

// Copies `rows` rows of `count` samples into rows of `plane` elements that begin at `to`, 0 where no sample
// falls, up to the element at `end`.
template <class T>
void pack_rows(const KernelTable<AccumulateType<T>>& table, const Samples<const T>& from,
               AccumulateType<T>* to, int64_t plane, AccumulateType<T>* end) {
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
            A* const first = to + top * layout.pitch + left;
            std::fill(to, first, A(0));
            pack_rows<T>(table, {source, h.stride, v.stride * h.extent, right - left, bottom - top}, first,
                         layout.pitch, to + layout.plane_size);
        }
    }
}

// Packs all channels of an image, with zeros in the `beyond` elements behind them.
template <class T>
void pack_image(const KernelTable<AccumulateType<T>>& table, const ConvLayout& layout, const T* from,
                AccumulateType<T>* to, int64_t beyond) {
    using A = AccumulateType<T>;
    const int64_t size = layout.vertical.extent * layout.horizontal.extent;
    for (int64_t c = 0; c < layout.channels; ++c) {
        A* const channel = to + c * layout.channel_size;
        pack_channel<T>(table, layout, from + c * size, channel);
        std::fill(channel + layout.phases * layout.plane_size, channel + layout.channel_size, A(0));
    }
    std::fill(to + layout.image_size(), to + layout.image_size() + beyond, A(0));
}

// Throws unless the weight, the geometry and the element counts of x and y fit one another.
void check_conv2d_sizes(const PatternView& pattern, const Conv2dShape& shape, const char* x_name,
                        int64_t x_count, const char* y_name, int64_t y_count, int threads);

// The same, and the buffers are there.
template <class X, class Y>
void check_conv2d(const PatternView& pattern, const Conv2dShape& shape, const char* x_name, const X& x,
                  const char* y_name, const Y& y, int threads) {
    check_conv2d_sizes(pattern, shape, x_name, x.count, y_name, y.count, threads);
    check_values(x_name, x, x.count);
    check_values(y_name, y, y.count);
}

// The threads that one of the three products is worth.
inline int conv2d_threads(const PatternView& pattern, const Conv2dShape& shape, int threads) {
    const int64_t pixels = shape.out_extent(0, pattern.kh) * shape.out_extent(1, pattern.kw);
    const int64_t in_size = shape.groups * pattern.cin * shape.height * shape.width;
    return worthwhile_threads(threads, shape.batch * pixels * pattern.nnz,
                              shape.batch * (in_size + pixels * pattern.rows));
}

}  // namespace sparsekern
