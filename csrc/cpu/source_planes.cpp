#include "source_planes.h"

namespace sparsekern {

PlaneAxis::PlaneAxis(int64_t source_extent, int64_t source_step, const std::vector<int64_t>& position,
                     TapPlanes planes)
    : extent(source_extent), step(source_step) {
    for (const int64_t first : position) {
        const auto found = std::find_if(origin.begin(), origin.end(), [&](int64_t other) {
            return planes == TapPlanes::kShared ? (first - other) % step == 0 : first == other;
        });
        tap_plane.push_back(found - origin.begin());
        if (found == origin.end()) {
            origin.push_back(first);
        } else {
            *found = std::min(*found, first);
        }
    }
    for (size_t k = 0; k < position.size(); ++k) {
        tap_offset.push_back((position[k] - origin[static_cast<size_t>(tap_plane[k])]) / step);
    }
}

PlaneAxis::Span PlaneAxis::span(int64_t plane, int64_t first, int64_t length) const {
    const int64_t base = origin[static_cast<size_t>(plane)] + first * step;
    const int64_t before = std::min(base < 0 ? (-base + step - 1) / step : 0, length);
    const int64_t end = base < extent ? (extent - base + step - 1) / step : 0;
    return {before, std::clamp(end, before, length) - before, base + before * step};
}

PlaneAxis input_axis(const Conv2dShape& shape, int axis, int64_t kernel, TapPlanes planes) {
    std::vector<int64_t> position;
    for (int64_t k = 0; k < kernel; ++k) position.push_back(k * shape.dilation[axis] - shape.padding[axis]);
    return PlaneAxis(axis == 0 ? shape.height : shape.width, shape.stride[axis], position, planes);
}

}  // namespace sparsekern
