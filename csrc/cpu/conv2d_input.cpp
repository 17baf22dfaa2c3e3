#include "conv2d_input.h"

namespace sparsekern {

SourceWindow input_window(const PatternView& pattern, const Conv2dShape& shape, int64_t lanes,
                          int64_t element_bytes) {
    const TapPlanes planes =
        planes_worthwhile(pattern.nnz, shape.groups * pattern.cin * pattern.kw, pattern.kw);
    const PlaneAxis horizontal = input_axis(shape, 1, pattern.kw, planes);
    const ResultTiles tiles(shape.out_extent(0, pattern.kh), shape.out_extent(1, pattern.kw), lanes, planes,
                            horizontal.reach());
    return SourceWindow(tiles, input_axis(shape, 0, pattern.kh, tiles.vertical_planes()), horizontal,
                        {shape.groups, pattern.cin, pattern.rows / shape.groups}, element_bytes);
}

TapPlaces input_places(const PatternView& pattern, const Conv2dShape& shape, const SourceWindow& window) {
    const int64_t rows_per_group = pattern.rows / shape.groups;
    TapPlaces places;
    for (int64_t n = 0; n < pattern.rows; ++n) {
        const TapPlace group = window.place(n / rows_per_group, 0);
        places.of_row.push_back({group.list + n % rows_per_group, group.offset});
    }
    for (int64_t i = 0; i < pattern.kh; ++i) {
        for (int64_t j = 0; j < pattern.kw; ++j) {
            for (int64_t c = 0; c < pattern.cin; ++c) {
                const TapPlace channel = window.place(0, c);
                places.of_column.push_back({channel.list, channel.offset + window.tap_offset(i, j)});
            }
        }
    }
    return places;
}

}  // namespace sparsekern
