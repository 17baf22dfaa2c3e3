// What some tiles of a convolution's result read, packed: for a block of channels, the planes of each.
//
// Windows are packed just before they are read and stay in the nearest cache until every output channel has
// read them, so no image is ever laid out as a whole.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernel_table.h"
#include "result_tiles.h"
#include "source_planes.h"
#include "tile_schedule.h"

namespace sparsekern {

// Channels whose windows are in the cache together, and the rows of the result that read them: `first` or
// `last` if these are the first or last channels that the rows read. Each row's taps in the block are a list,
// from list `list` on.
struct ChannelBlock {
    int64_t channel;
    int64_t channels;
    int64_t row_begin;
    int64_t row_end;
    int64_t list;
    bool first;
    bool last;
};

// The list that a weight belongs to, and what it reads of the block's window.
struct TapPlace {
    int64_t list;
    int64_t offset;
};

// Groups of a convolution: each reads as many channels, and writes as many rows.
struct ChannelGroups {
    int64_t groups;
    int64_t channels;
    int64_t rows;
};

class SourceWindow {
public:
    SourceWindow(const ResultTiles& tiles, PlaneAxis vertical, PlaneAxis horizontal,
                 const ChannelGroups& groups, int64_t element_bytes);

    const ResultTiles& tiles() const { return tiles_; }
    int64_t rows() const { return groups_.groups * groups_.rows; }
    int64_t image_size() const { return groups_.groups * groups_.channels * source_size(); }
    int64_t size() const { return block_groups_ * block_channels_ * channel_size(); }

    // Windows are columns of tiles: `tile(w, i)` for i < tile_count(w) reads window w from element
    // tile_offset(i) on.
    int64_t windows() const { return divide_up(tiles_.down(), stack_) * tiles_.across(); }
    int64_t window_row(int64_t window) const { return window / tiles_.across(); }
    int64_t tile_count(int64_t window) const {
        return std::min(stack_, tiles_.down() - window_row(window) * stack_);
    }
    ResultTile tile(int64_t window, int64_t i) const {
        return tiles_.at(window_row(window) * stack_ + i, window % tiles_.across());
    }
    int64_t tile_offset(int64_t i) const { return i * tiles_.rows() * tiles_.pitch(); }

    int64_t lists() const { return rows() * group_blocks_; }
    int64_t blocks() const { return divide_up(groups_.groups, block_groups_) * group_blocks_; }
    ChannelBlock block(int64_t index) const;

    // For channel `c` of a group: the list of the group's first row, and where the channel begins in a
    // window. Both are sums of what depends on the group and what depends on `c`.
    TapPlace place(int64_t group, int64_t c) const {
        return {(group * group_blocks_ + c / block_channels_) * groups_.rows,
                (group % block_groups_ * groups_.channels + c % block_channels_) * channel_size()};
    }
    // Where tap (i, j) finds a channel's pixels in the channel's part of the window.
    int64_t tap_offset(int64_t i, int64_t j) const {
        const int64_t plane = vertical_.tap_plane[i] * horizontal_.planes() + horizontal_.tap_plane[j];
        return plane * plane_size_ + vertical_.tap_offset[i] * tiles_.pitch() + horizontal_.tap_offset[j];
    }

    // Where the planes of a channel lie in an image for one window: `planes` is as long as plane_count().
    int64_t plane_count() const { return vertical_.planes() * horizontal_.planes(); }
    void locate(int64_t window, std::vector<PixelPlane>& planes) const;

    // Packs one block's window from an image of all channels.
    template <class T>
    void pack(const KernelTable<AccumulateType<T>>& table, const T* image, const ChannelBlock& block,
              const std::vector<PixelPlane>& planes, AccumulateType<T>* to) const {
        pack_planes(table,
                    PlaneWork<T>{image + block.channel * source_size(), block.channels, source_size(),
                                 vertical_.step * horizontal_.extent, horizontal_.step, planes.data(),
                                 static_cast<int64_t>(planes.size()), plane_size_, tiles_.pitch()},
                    to);
    }

private:
    // Beyond the nearest cache itself: rows of the result that are visited for longer make up for it.
    static constexpr int64_t kWindowBytes = 48 << 10;
    // Planes are shared where packing weighs more than reading: tall windows, in the next cache.
    static constexpr int64_t kSharedWindowBytes = 192 << 10;

    int64_t source_size() const { return vertical_.extent * horizontal_.extent; }
    int64_t channel_size() const { return plane_count() * plane_size_; }

    ResultTiles tiles_;
    PlaneAxis vertical_;
    PlaneAxis horizontal_;
    ChannelGroups groups_;
    int64_t stack_;  // tiles of a window
    int64_t plane_size_;
    int64_t group_blocks_;    // blocks of a group's channels
    int64_t block_channels_;  // channels of a group in one block
    int64_t block_groups_;    // groups in one block
};

}  // namespace sparsekern
