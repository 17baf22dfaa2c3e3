// Sums over tap lists for every pixel of every image: the convolution itself, and its gradient for the input.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "kernel_table.h"
#include "source_window.h"
#include "tap_list.h"
#include "team.h"
#include "tile_schedule.h"

namespace sparsekern {

// Into how many parts to cut `rows`, so that there are two tasks for each thread or more, and the pixels of a
// part's rows fit a private cache.
inline int64_t row_parts(int64_t rows, int64_t row_bytes, int64_t tasks, int threads) {
    const int64_t for_cache = divide_up(rows * row_bytes, kPrivateCacheBytes);
    const int64_t for_threads =
        tasks >= 2 * threads ? 1 : divide_up(2 * threads, std::max<int64_t>(1, tasks));
    return std::clamp<int64_t>(std::max(for_cache, for_threads), 1, std::max<int64_t>(1, rows));
}

// Reads an image from end to end where a private cache then holds it: as one stream it comes much sooner than
// as the short rows of tiles.
template <class T>
void stream_in(const T* image, int64_t size) {
    constexpr int64_t line = 64;
    const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
    if (bytes > 2 * kPrivateCacheBytes) return;
    const volatile char* const from = reinterpret_cast<const volatile char*>(image);
    for (int64_t i = 0; i < bytes; i += line) static_cast<void>(from[i]);
}

// What a thread packs a window into, and room for a tile's pixels of some rows of the result.
template <class A>
struct WindowScratch {
    Buffer<A> window;
    Buffer<A> rows;
    std::vector<PixelPlane> planes;

    WindowScratch(const SourceWindow& source, int64_t rows_size)
        : window(source.size()), rows(rows_size), planes(static_cast<size_t>(source.plane_count())) {}
};

// Packs the window of each block that some of the rows [begin, end) read, and calls body(block, first, last)
// with those rows.
template <class T, class Body>
void for_each_block(const SourceWindow& source, const KernelTable<AccumulateType<T>>& table, const T* image,
                    int64_t window, int64_t begin, int64_t end, WindowScratch<AccumulateType<T>>& scratch,
                    Body&& body) {
    source.locate(window, scratch.planes);
    for (int64_t b = 0; b < source.blocks(); ++b) {
        const ChannelBlock block = source.block(b);
        const int64_t first = std::max(begin, block.row_begin);
        const int64_t last = std::min(end, block.row_end);
        if (first >= last) continue;
        source.pack<T>(table, image, block, scratch.planes, scratch.window.data());
        body(block, first, last);
    }
}

template <class T>
class ListConvolution {
    using A = AccumulateType<T>;

public:
    ListConvolution(const SourceWindow& window, const TapList<A>& list, const A* start, int threads)
        : window_(window), list_(list), start_(start), threads_(threads), table_(kernels<A>()) {}

    // store(image, tile, first row, rows, sums) takes the sums of a tile's pixels for some rows of the
    // result, tile.vectors vectors for each row.
    template <class Store>
    void run(const T* source, int64_t batch, Store&& store) const {
        const int64_t windows = window_.windows();
        const int64_t width = window_.tiles().max_vectors() * table_.lanes;
        const int64_t parts =
            row_parts(window_.rows(), width * static_cast<int64_t>(sizeof(A)), batch * windows, threads_);
        const int64_t part_rows = divide_up(window_.rows(), parts);
        const int64_t tasks = windows * parts;  // of an image
        Team team;
#pragma omp parallel num_threads(threads_) if (batch * tasks > 1)
        {
            auto scratch = team.scratch([&] { return WindowScratch<A>(window_, part_rows * width); });
            int64_t streamed = -1;
#pragma omp for schedule(static)
            for (int64_t task = 0; task < (scratch ? batch * tasks : 0); ++task) {
                const int64_t image = task / tasks;
                const int64_t row = task % parts * part_rows;
                const int64_t end = std::min(row + part_rows, window_.rows());
                if (row >= end) continue;
                const T* const from = source + image * window_.image_size();
                if (image != streamed) stream_in(from, window_.image_size());
                streamed = image;
                sum_rows(from, task % tasks / parts, row, end, *scratch,
                         [&](const ResultTile& tile, int64_t first, int64_t rows) {
                             store(image, tile, first, rows, scratch->rows.data());
                         });
            }
        }
        team.rethrow();
    }

private:
    template <class Store>
    void sum_rows(const T* image, int64_t window, int64_t begin, int64_t end, WindowScratch<A>& scratch,
                  Store&& store) const {
        for_each_block(window_, table_, image, window, begin, end, scratch,
                       [&](const ChannelBlock& block, int64_t first, int64_t last) {
                           for (int64_t i = 0; i < window_.tile_count(window); ++i) {
                               const ResultTile tile = window_.tile(window, i);
                               table_.accumulate_list[tile.vectors](
                                   {list_.ptr(block, first), last - first, list_.offset(),
                                    scratch.window.data() + window_.tile_offset(i), scratch.rows.data(),
                                    tile.vectors * table_.lanes},
                                   list_.payload(), block.first,
                                   start_ != nullptr ? start_ + first : nullptr);
                               if (block.last) store(tile, first, last - first);
                           }
                       });
    }

    const SourceWindow& window_;
    const TapList<A>& list_;
    const A* start_;
    int threads_;
    const KernelTable<A>& table_;
};

}  // namespace sparsekern
