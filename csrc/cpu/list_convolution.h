// Sums over tap lists for every pixel of every image: the convolution itself, and its gradient for the input.
#pragma once

#include <algorithm>
#include <cstdint>

#include "buffer.h"
#include "images.h"
#include "kernel_table.h"
#include "panels.h"
#include "tap_list.h"
#include "tile_schedule.h"

namespace sparsekern {

// The pixels of a result, numbered as if its rows were `pitch` wide: the rows of the source, so that a tap is
// one offset whatever the pixel. The surplus pixels are computed and dropped.
struct PixelGrid {
    int64_t height;
    int64_t width;
    int64_t pitch;
    int64_t pixels;
    PanelShape panels;

    PixelGrid(int64_t rows, int64_t columns, int64_t source_pitch, int64_t lanes)
        : height(rows),
          width(columns),
          pitch(source_pitch),
          pixels((rows - 1) * source_pitch + columns),
          panels(pixels, lanes, kMaxVectors) {}
};

// Calls body(first, column, count, pixel) for each run of a panel's pixels that is in the result: `count`
// pixels from (first, column), which begin `pixel` pixels into the panel.
template <class Body>
void for_each_run(const PixelGrid& grid, int64_t panel, Body&& body) {
    const int64_t first = grid.panels.begin(panel);
    const int64_t last = first + grid.panels.count(panel, grid.pixels);
    for (int64_t i = first / grid.pitch; i * grid.pitch < last; ++i) {
        const int64_t left = std::max(first, i * grid.pitch);
        const int64_t count = std::min(last, i * grid.pitch + grid.width) - left;
        if (count > 0) body(i, left - i * grid.pitch, count, left - first);
    }
}

// Which taps are summed together, so that what they read of a panel stays in the nearest cache: all of them,
// or those of one row of the kernel and a block of channels.
struct TapGroups {
    int64_t block;  // channels
    int64_t blocks;
    int64_t rows;  // rows of the kernel that are told apart

    template <class A>
    static TapGroups fitting(const PixelGrid& grid, int64_t channels, int64_t kernel_rows, int64_t reach) {
        const int64_t panel_bytes = grid.panels.width * static_cast<int64_t>(sizeof(A));
        const int64_t window_bytes = panel_bytes + reach * grid.pitch * static_cast<int64_t>(sizeof(A));
        if (channels * window_bytes <= kNearCacheBytes) return {channels, 1, 1};
        const int64_t block = std::clamp<int64_t>(kNearCacheBytes / panel_bytes, 1, channels);
        return {block, (channels + block - 1) / block, kernel_rows};
    }
    int64_t count() const { return rows * blocks; }
    int64_t of(int64_t kernel_row, int64_t channel) const {
        return (rows > 1 ? kernel_row : 0) * blocks + channel / block;
    }
};

// Where the weight's positions go for the convolution itself: row n reads its taps in the packed input.
TapPlaces forward_places(const PatternView& pattern, const Conv2dShape& shape, const ConvLayout& layout,
                         const TapGroups& groups);

template <class A>
class ListConvolution {
public:
    ListConvolution(const TapList<A>& list, const PixelGrid& grid, const A* start, int64_t source_size,
                    int threads)
        : list_(list),
          grid_(grid),
          start_(start),
          source_size_(source_size + kMaxVectors * kernels<A>().lanes),
          threads_(threads),
          table_(kernels<A>()) {
        check_image_size(source_size_);
    }

    // For each image, get_source(image, scratch) returns the packed source, in scratch or elsewhere, followed
    // by one readable panel; store(image, first row, rows, panel, sums) takes the sums of one panel.
    template <class GetSource, class Store>
    void run(int64_t batch, GetSource&& get_source, Store&& store) const {
        const int64_t row_bytes = grid_.panels.width * static_cast<int64_t>(sizeof(A));
        const int64_t fitting = std::max<int64_t>(1, kPrivateCacheBytes / 4 / row_bytes);
        // Without an image for every thread, threads share an image's rows, and each packs it for itself.
        const int64_t parts =
            batch >= 2 * threads_ ? 1 : std::min(list_.rows(), (2 * threads_ + batch - 1) / batch);
#pragma omp parallel num_threads(threads_) if (batch * parts > 1)
        {
            Buffer<A> sums(std::min(fitting, list_.rows()) * grid_.panels.width);
            Buffer<A> scratch(source_size_);
            int64_t packed = -1;
            const A* source = nullptr;
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < batch * parts; ++task) {
                const int64_t image = task / parts;
                const int64_t end = list_.rows() * (task % parts + 1) / parts;
                if (image != packed) source = get_source(image, scratch.data());
                packed = image;
                for (int64_t row = list_.rows() * (task % parts) / parts; row < end; row += fitting) {
                    const int64_t rows = std::min(fitting, end - row);
                    for (int64_t panel = 0; panel < grid_.panels.panels; ++panel) {
                        sum_rows(source + grid_.panels.begin(panel), row, rows, sums.data());
                        store(image, row, rows, panel, sums.data());
                    }
                }
            }
        }
    }

private:
    void sum_rows(const A* source, int64_t row, int64_t rows, A* sums) const {
        const auto accumulate = table_.accumulate_list[grid_.panels.width / table_.lanes];
        for (int64_t g = 0; g < list_.groups(); ++g) {
            accumulate({list_.ptr(g) + row, rows, list_.offset(), source, sums, grid_.panels.width},
                       list_.payload(), g == 0, start_ != nullptr ? start_ + row : nullptr);
        }
    }

    const TapList<A>& list_;
    PixelGrid grid_;
    const A* start_;
    int64_t source_size_;
    int threads_;
    const KernelTable<A>& table_;
};

}  // namespace sparsekern
