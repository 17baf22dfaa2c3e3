// What one tile of a convolution's result reads, packed: for a block of channels, the planes of each.
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

namespace sparsekern {

// Channels whose windows are in the cache together, and the rows of the result that read them: `fresh` if
// these are the first channels that the rows read. Each row's taps in the block are a list, from list `list`
// on.
struct ChannelBlock {
    int64_t channel;
    int64_t channels;
    int64_t row_begin;
    int64_t row_end;
    int64_t list;
    bool fresh;
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
                 const ChannelGroups& groups, int64_t element_bytes)
        : tiles_(tiles),
          vertical_(std::move(vertical)),
          horizontal_(std::move(horizontal)),
          groups_(groups),
          plane_size_(round_up((tiles_.rows() + vertical_.reach()) * tiles_.pitch(), tiles_.lanes())) {
        const int64_t fitting = std::max<int64_t>(1, kWindowBytes / (channel_size() * element_bytes));
        group_blocks_ = divide_up(groups.channels, fitting);
        block_channels_ = divide_up(groups.channels, group_blocks_);
        block_groups_ =
            group_blocks_ > 1 ? 1 : std::clamp<int64_t>(fitting / groups.channels, 1, groups.groups);
        if (size() <= std::numeric_limits<int32_t>::max()) return;
        throw std::invalid_argument(
            "x: expected rows and dilations that keep the pixels of one tile below "
            "2^31 elements, got " +
            std::to_string(size()));
    }

    const ResultTiles& tiles() const { return tiles_; }
    int64_t planes() const { return vertical_.planes() * horizontal_.planes(); }
    int64_t channel_size() const { return planes() * plane_size_; }
    int64_t size() const { return block_groups_ * block_channels_ * channel_size(); }
    int64_t channels() const { return groups_.groups * groups_.channels; }
    int64_t rows() const { return groups_.groups * groups_.rows; }
    int64_t lists() const { return rows() * group_blocks_; }
    int64_t blocks() const { return divide_up(groups_.groups, block_groups_) * group_blocks_; }

    ChannelBlock block(int64_t index) const {
        const int64_t group = index / group_blocks_ * block_groups_;
        const int64_t end = std::min(group + block_groups_, groups_.groups);
        const int64_t part = index % group_blocks_;
        const int64_t first = part * block_channels_;
        const int64_t last = std::min(first + block_channels_, groups_.channels);
        return {group * groups_.channels + first,
                (end - group - 1) * groups_.channels + last - first,
                group * groups_.rows,
                end * groups_.rows,
                place(group, first).list,
                part == 0};
    }

    // For channel `c` of a group: the list of the group's first row, and where the channel begins in a
    // window. Both are sums of what depends on the group and what depends on `c`.
    TapPlace place(int64_t group, int64_t c) const {
        return {(group * group_blocks_ + c / block_channels_) * groups_.rows,
                (group % block_groups_ * groups_.channels + c % block_channels_) * channel_size()};
    }

    // Where tap (i, j) finds a channel's pixels in the channel's part of the window.
    int64_t tap_offset(int64_t i, int64_t j) const {
        const int64_t plane = vertical_.tap_plane[i] * horizontal_.planes() + horizontal_.tap_plane[j];
        return plane * plane_size_ + vertical_.tap_offset[i] * tiles_.pitch();
    }

    // Where the planes of each channel lie in an image for the pixels of `tile`.
    std::vector<PixelPlane> tile_planes(const ResultTile& tile) const {
        std::vector<PixelPlane> planes;
        for (int64_t pv = 0; pv < vertical_.planes(); ++pv) {
            const PlaneAxis::Span rows = vertical_.span(pv, tile.row, tile.rows + vertical_.reach());
            for (int64_t ph = 0; ph < horizontal_.planes(); ++ph) {
                const PlaneAxis::Span columns = horizontal_.span(ph, tile.column, tile.columns);
                planes.push_back({rows.source * horizontal_.extent + columns.source,
                                  columns.inside > 0 ? rows.inside : 0, columns.inside, rows.before,
                                  columns.before});
            }
        }
        return planes;
    }

    // Packs one block's window from an image of all channels.
    template <class T>
    void pack(const KernelTable<AccumulateType<T>>& table, const T* image, const ChannelBlock& block,
              const std::vector<PixelPlane>& planes, AccumulateType<T>* to) const {
        const int64_t size = vertical_.extent * horizontal_.extent;
        pack_planes(table,
                    PlaneWork<T>{image + block.channel * size, block.channels, size,
                                 vertical_.step * horizontal_.extent, horizontal_.step, planes.data(),
                                 this->planes(), plane_size_, tiles_.pitch()},
                    to);
    }

private:
    // Beyond the nearest cache itself: rows of the result that are visited for longer make up for it.
    static constexpr int64_t kWindowBytes = 40 << 10;

    ResultTiles tiles_;
    PlaneAxis vertical_;
    PlaneAxis horizontal_;
    ChannelGroups groups_;
    int64_t plane_size_;
    int64_t group_blocks_;    // blocks of a group's channels
    int64_t block_channels_;  // channels of a group in one block
    int64_t block_groups_;    // groups in one block
};

}  // namespace sparsekern
