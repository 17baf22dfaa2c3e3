// The leaf kernels that exist once per instruction set, and the table a driver calls them through.
//
// Every product of this package reduces to panels: a panel holds a run of P samples (batch rows, or pixels)
// for each feature, so that one vector instruction serves P samples of one weight.
#pragma once

#include <cstdint>

#include "sparsekern/dtype.h"
#include "sparsekern/isa.h"
#include "tile_matrix.h"

namespace sparsekern {

constexpr int kMaxVectors = 8;  // vectors in a panel; their sums fit the registers of every level

// Rows [first_row, rows) of one row of tiles against one panel. The features of columns lie behind one
// another from those of column `first_column` at x on, and the panel rows of y from that of first_row on.
template <class A>
struct PanelWork {
    const TileMatrix* matrix;
    const int32_t* tiles;  // indices of the tiles to visit
    int64_t tile_count;
    int64_t rows;
    const A* x;
    A* y;
    int64_t first_row = 0;
    int64_t first_column = 0;
    const int32_t* next_tiles = nullptr;  // neighbours in memory that are visited soon
    int64_t next_count = 0;
};

// Rows given as lists against one panel: row r reads x + offset[i] for i in ptr[r] .. ptr[r + 1] - 1.
template <class A>
struct ListWork {
    const int64_t* ptr;
    int64_t rows;
    const int32_t* offset;
    const A* x;
    A* y;
    int64_t y_stride;
};

// `count` samples by `features` in memory at data[sample * sample_stride + feature * feature_stride].
template <class T>
struct Samples {
    T* data;
    int64_t sample_stride;
    int64_t feature_stride;
    int64_t count;
    int64_t features;
};

// Panels of a few samples are narrower than a vector, down to the one element a feature of a single sample:
// width 0 is one element, width i > 0 is 8 << i bytes.
constexpr int kNarrowWidths = 5;
constexpr int64_t kNarrowTiles = 64;      // tiles that a kernel for them takes at a time
constexpr int64_t kNarrowColumns = 4096;  // and the columns of those
constexpr int64_t kNarrowCopies = 4;      // see narrow_transposed

// Samples of a dense product: outer_rows rows of y and outer_columns columns of x for each. The rows of sums
// are `pitch` apart.
template <class A>
struct OuterWork {
    const A* y;
    const A* x;
    int64_t samples;
    A* sums;
    int64_t pitch;
};

// Neighbouring tiles of one row against narrow panels, whose runs lie one behind the other.
template <class A>
struct NarrowWork {
    const TileMatrix* matrix;
    int64_t first_tile;
    int64_t tile_count;
    int64_t rows;            // rows of this row of tiles that exist
    const uint16_t* column;  // where each tile's features begin in x
    const A* x;
    A* y;
};

// Pixels in memory at data[channel * channel_stride + row * row_stride + column * column_stride].
template <class T>
struct PixelBlock {
    T* data;
    int64_t channel_stride;
    int64_t row_stride;
    int64_t column_stride;
    int64_t channels;
    int64_t rows;
    int64_t columns;
};

// A plane of a channel: the pixels that it takes from the channel, and the zeros above them and to their
// left.
struct PixelPlane {
    int64_t source;  // of the first pixel, from the channel's first
    int64_t rows;
    int64_t columns;
    int64_t above;
    int64_t left;
};

// The planes of neighbouring channels, one channel after the other.
template <class T>
struct PlaneWork {
    const T* data;
    int64_t channels;
    int64_t channel_stride;
    int64_t row_stride;
    int64_t column_stride;
    const PixelPlane* planes;
    int64_t plane_count;
    int64_t plane_size;
    int64_t pitch;  // from one row of a plane to the next
};

// Where sums of pixels lie: their rows are `pitch` apart.
struct PixelRoom {
    int64_t channel_stride;
    int64_t pitch;
};

// One tile and its transpose, which is written.
template <class A>
struct TileTranspose {
    int64_t tile_size;
    const unsigned char* bits;
    const A* values;
    unsigned char* bits_t;
    int16_t* row_offset_t;
    A* values_t;
};

template <class A>
struct KernelTable {
    int64_t lanes;
    // y[r] (+)= sum over active c of values * x[c]; starts from `start[r]` (or 0 when null) if `fresh`.
    void (*accumulate[kMaxVectors + 1])(const PanelWork<A>&, const A* values, bool fresh, const A* start);
    // values_gradient[r, c] (+)= sum over the panel of y[r] * x[c]; overwrites if `fresh`.
    void (*dot[kMaxVectors + 1])(const PanelWork<A>&, A* values_gradient, bool fresh);
    // The same for rows given as lists; values[i] and dots[i] belong to offset[i], and dots are added.
    void (*accumulate_list[kMaxVectors + 1])(const ListWork<A>&, const A* values, bool fresh, const A* start);
    void (*dot_list[kMaxVectors + 1])(const ListWork<A>&, A* dots);
    // y[r] (+)= sum over active c of values * x[c]; starts from `start[r]` (or 0 when null) if `fresh`.
    void (*narrow_product[kNarrowWidths])(const NarrowWork<A>&, const A* values, bool fresh, const A* start);
    // y[c] += sum over active r of values * x[r], for one tile, as the sum of kNarrowCopies panels of a
    // tile's columns.
    void (*narrow_transposed[kNarrowWidths])(const NarrowWork<A>&, const A* values);
    // values_gradient[r, c] = sum over the panel of y[r] * x[c], for one tile.
    void (*narrow_dot[kNarrowWidths])(const NarrowWork<A>&, A* values_gradient);
    // sums[r, c] (+)= sum over samples of y[r] * x[c], for outer_rows x outer_columns sums; overwrites if
    // `fresh`.
    int64_t outer_rows;
    int64_t outer_columns;
    void (*outer)(const OuterWork<A>&, bool fresh);
    // Into and out of panels of `width` samples; samples past the end read as 0 and are not written.
    void (*pack)(const Samples<const A>&, A* panel, int64_t width);
    void (*unpack)(const A* panel, int64_t width, const Samples<A>&);
    void (*pack_bfloat16)(const Samples<const BFloat16>&, A* panel, int64_t width);
    void (*unpack_bfloat16)(const A* panel, int64_t width, const Samples<BFloat16>&);
    // Pixels into planes that zeros fill up, and out of sums.
    void (*pack_planes)(const PlaneWork<A>&, A* to);
    void (*unpack_pixels)(const A* from, const PixelRoom&, const PixelBlock<A>&);
    void (*pack_planes_bfloat16)(const PlaneWork<BFloat16>&, A* to);
    void (*unpack_pixels_bfloat16)(const A* from, const PixelRoom&, const PixelBlock<BFloat16>&);
    void (*transpose_tile)(const TileTranspose<A>&);
};

template <class A>
const KernelTable<A>& kernels();

inline void pack(const KernelTable<float>& table, const Samples<const float>& from, float* panel,
                 int64_t width) {
    table.pack(from, panel, width);
}
inline void pack(const KernelTable<double>& table, const Samples<const double>& from, double* panel,
                 int64_t width) {
    table.pack(from, panel, width);
}
inline void pack(const KernelTable<float>& table, const Samples<const BFloat16>& from, float* panel,
                 int64_t width) {
    table.pack_bfloat16(from, panel, width);
}
inline void unpack(const KernelTable<float>& table, const float* panel, int64_t width,
                   const Samples<float>& to) {
    table.unpack(panel, width, to);
}
inline void unpack(const KernelTable<double>& table, const double* panel, int64_t width,
                   const Samples<double>& to) {
    table.unpack(panel, width, to);
}
inline void unpack(const KernelTable<float>& table, const float* panel, int64_t width,
                   const Samples<BFloat16>& to) {
    table.unpack_bfloat16(panel, width, to);
}

template <class A>
void pack_planes(const KernelTable<A>& table, const PlaneWork<A>& from, A* to) {
    table.pack_planes(from, to);
}
inline void pack_planes(const KernelTable<float>& table, const PlaneWork<BFloat16>& from, float* to) {
    table.pack_planes_bfloat16(from, to);
}
template <class A>
void unpack_pixels(const KernelTable<A>& table, const A* from, const PixelRoom& room,
                   const PixelBlock<A>& to) {
    table.unpack_pixels(from, room, to);
}
inline void unpack_pixels(const KernelTable<float>& table, const float* from, const PixelRoom& room,
                          const PixelBlock<BFloat16>& to) {
    table.unpack_pixels_bfloat16(from, room, to);
}

}  // namespace sparsekern
