// One axis of the planes that a convolution reads from.
//
// A plane holds every `step`-th pixel of the source from some origin on, with zeros outside the source, so
// that consecutive pixels of the result read consecutive memory whatever the stride, dilation and padding. A
// plane of its own for each tap of a kernel's row lets all taps read aligned vectors: a vector across two
// cache lines costs two loads, and a packed pixel is read by many outputs. Taps of a kernel's column share
// planes, since whole rows apart is aligned anyhow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sparsekern/conv2d.h"

namespace sparsekern {

enum class TapPlanes { kOwn, kShared };

// How a kernel's row finds its pixels, when `uses` weights read each of `pixels` packed ones: packing takes
// some time for each copy, and what is read unaligned takes two thirds longer.
inline TapPlanes planes_worthwhile(int64_t uses, int64_t pixels, int64_t kernel) {
    constexpr int64_t kUses = 8;
    return kernel == 1 || uses >= kUses * pixels ? TapPlanes::kOwn : TapPlanes::kShared;
}

struct PlaneAxis {
    int64_t extent;                   // of the source
    int64_t step;                     // source pixels from one pixel of a plane to the next
    std::vector<int64_t> origin;      // the source pixel that each plane begins with; maybe outside
    std::vector<int64_t> tap_plane;   // per tap
    std::vector<int64_t> tap_offset;  // per tap: the pixel of its plane that result pixel 0 reads

    // `position[k]` is the source pixel that tap k reads for result pixel 0.
    PlaneAxis(int64_t source_extent, int64_t source_step, const std::vector<int64_t>& position,
              TapPlanes planes);

    int64_t planes() const { return static_cast<int64_t>(origin.size()); }
    int64_t reach() const { return *std::max_element(tap_offset.begin(), tap_offset.end()); }

    // Of `length` pixels of a plane from `first` on: how many precede the source, how many are inside, and
    // the source pixel of the first that is.
    struct Span {
        int64_t before;
        int64_t inside;
        int64_t source;
    };
    Span span(int64_t plane, int64_t first, int64_t length) const;
};

// What the convolution itself reads along `axis` of its input.
PlaneAxis input_axis(const Conv2dShape& shape, int axis, int64_t kernel, TapPlanes planes);

}  // namespace sparsekern
