// How a convolution reads its input: for the forward product, and for the gradient of the values.
#pragma once

#include <cstdint>

#include "source_window.h"
#include "sparsekern/conv2d.h"
#include "tap_list.h"

namespace sparsekern {

SourceWindow input_window(const PatternView& pattern, const Conv2dShape& shape, int64_t lanes,
                          int64_t element_bytes);

// Where the weight's positions go: row n reads its taps in the windows of its group's channels.
TapPlaces input_places(const PatternView& pattern, const Conv2dShape& shape, const SourceWindow& window);

}  // namespace sparsekern
