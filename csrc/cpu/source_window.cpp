#include "source_window.h"

namespace sparsekern {
namespace {

// A part of what a tile of pixels reads, or all of it: lists have 32 bits for a place in there.
void check_extent(int64_t elements) {
    if (elements <= std::numeric_limits<int32_t>::max()) return;
    throw std::invalid_argument(
        "x: expected rows and dilations that keep what a tile of pixels reads below 2^31 elements, got " +
        std::to_string(elements));
}

}  // namespace

SourceWindow::SourceWindow(const ResultTiles& tiles, PlaneAxis vertical, PlaneAxis horizontal,
                           const ChannelGroups& groups, int64_t element_bytes)
    : tiles_(tiles), vertical_(std::move(vertical)), horizontal_(std::move(horizontal)), groups_(groups) {
    check_extent(std::max(vertical_.reach(), horizontal_.reach()));
    const int64_t fitting =
        (horizontal_.reach() > 0 ? kSharedWindowBytes : kWindowBytes) / element_bytes;  // elements
    // A window of several tiles packs their common rows once. The sums of one tile alone are kept, so only
    // where a group's channels are one block. A tile of dense rows does not begin with a whole vector.
    const int64_t tall = fitting / (groups.channels * plane_count() * tiles_.pitch()) - vertical_.reach();
    const bool single = tiles_.vertical_planes() == TapPlanes::kOwn;
    stack_ = single ? 1 : std::clamp<int64_t>(tall / tiles_.rows(), 1, tiles_.down());
    stack_ = shared_evenly(tiles_.down(), stack_);
    const int64_t end = (stack_ - 1) * tile_offset(1) + tiles_.max_vectors() * tiles_.lanes();
    const int64_t reach = vertical_.reach() * tiles_.pitch() + horizontal_.reach();
    plane_size_ = round_up(
        std::max(end + reach, (stack_ * tiles_.rows() + vertical_.reach()) * tiles_.pitch()), tiles_.lanes());
    check_extent(plane_size_);
    const int64_t channels = std::max(stack_ > 1 ? groups.channels : 1, fitting / channel_size());
    group_blocks_ = divide_up(groups.channels, channels);
    block_channels_ = divide_up(groups.channels, group_blocks_);
    block_groups_ = std::clamp<int64_t>(channels / groups.channels, 1, groups.groups);
    check_extent(size());
}

ChannelBlock SourceWindow::block(int64_t index) const {
    const int64_t group = index / group_blocks_ * block_groups_;
    const int64_t group_end = std::min(group + block_groups_, groups_.groups);
    const int64_t part = index % group_blocks_;
    const int64_t begin = part * block_channels_;
    const int64_t end = std::min(begin + block_channels_, groups_.channels);
    ChannelBlock block;
    block.channel = group * groups_.channels + begin;
    block.channels = (group_end - group - 1) * groups_.channels + end - begin;
    block.row_begin = group * groups_.rows;
    block.row_end = group_end * groups_.rows;
    block.list = place(group, begin).list;
    block.first = part == 0;
    block.last = part == group_blocks_ - 1;
    return block;
}

void SourceWindow::locate(int64_t window, std::vector<PixelPlane>& planes) const {
    const ResultTile top = tile(window, 0);
    const ResultTile bottom = tile(window, tile_count(window) - 1);
    const int64_t length = bottom.row + bottom.rows - top.row + vertical_.reach();
    auto plane = planes.begin();
    for (int64_t v = 0; v < vertical_.planes(); ++v) {
        const PlaneAxis::Span rows = vertical_.span(v, top.row, length);
        for (int64_t h = 0; h < horizontal_.planes(); ++h) {
            const PlaneAxis::Span columns =
                horizontal_.span(h, top.column, top.columns + horizontal_.reach());
            *plane++ = {rows.source * horizontal_.extent + columns.source,
                        columns.inside > 0 ? rows.inside : 0, columns.inside, rows.before, columns.before};
        }
    }
}

}  // namespace sparsekern
