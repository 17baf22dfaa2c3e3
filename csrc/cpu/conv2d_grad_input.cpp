#include <algorithm>
#include <vector>

#include "compute_values.h"
#include "conv2d_check.h"
#include "list_convolution.h"
#include "sparsekern/conv2d.h"

namespace sparsekern {
namespace {

// One axis of grad_x. It is computed by planes, one for each phase of the stride: pixel i of a plane gathers
// from pixel i - offset of grad_y for each of the plane's taps. Only pixels [begin, end) of the planes are
// inside the input.
struct GradAxis {
    PlaneAxis input;
    int64_t out;
    int64_t begin;
    int64_t end;

    GradAxis(const Conv2dShape& shape, int axis, int64_t kernel)
        : input(input_axis(shape, axis, kernel, TapPlanes::kShared)), out(shape.out_extent(axis, kernel)) {
        const int64_t length = out + input.reach();
        begin = length;
        end = 0;
        for (int64_t plane = 0; plane < input.planes(); ++plane) {
            const PlaneAxis::Span span = input.span(plane, 0, length);
            if (span.inside == 0) continue;
            begin = std::min(begin, span.before);
            end = std::max(end, span.before + span.inside);
        }
    }

    bool empty() const { return begin >= end; }

    PlaneAxis source(TapPlanes planes) const {
        std::vector<int64_t> position;
        for (const int64_t offset : input.tap_offset) position.push_back(begin - offset);
        return PlaneAxis(out, 1, position, planes);
    }
};

template <class T>
class Conv2dGradInput {
    using A = AccumulateType<T>;

public:
    Conv2dGradInput(const PatternView& pattern, const Conv2dShape& shape, int threads)
        : pattern_(pattern),
          shape_(shape),
          threads_(threads),
          table_(kernels<A>()),
          vertical_(shape, 0, pattern.kh),
          horizontal_(shape, 1, pattern.kw),
          planes_(vertical_.input.planes() * horizontal_.input.planes()) {}

    void run(const void* values, const T* grad_y, T* grad_x) const {
        const int64_t image_size = shape_.groups * pattern_.cin * shape_.height * shape_.width;
        // With a stride, some input pixels may be read by no tap; and all of them when the padding alone is.
        const bool empty = vertical_.empty() || horizontal_.empty();
        if (empty || shape_.stride[0] > 1 || shape_.stride[1] > 1) {
            std::fill(grad_x, grad_x + shape_.batch * image_size, T{});
        }
        if (empty) return;
        const SourceWindow window = this->window();
        const ComputeValues<T> weights(values, pattern_.nnz);
        const TapList<A> list(pattern_, window, places(window), weights.data(), threads_);
        const auto store = [&](int64_t image, const ResultTile& tile, int64_t row, int64_t rows,
                               const A* sums) {
            T* const to = grad_x + image * image_size;
            const int64_t width = tile.vectors * table_.lanes;
            for (int64_t r = row; r < row + std::min(rows, planes_); ++r) {
                store_plane(window, tile, r, divide_up(row + rows - r, planes_), sums + (r - row) * width,
                            to);
            }
        };
        ListConvolution<T>(window, list, nullptr, threads_).run(grad_y, shape_.batch, store);
    }

private:
    // The result has a row for each plane of each input channel.
    SourceWindow window() const {
        const TapPlanes planes = planes_worthwhile(pattern_.nnz, pattern_.rows * pattern_.kw, pattern_.kw);
        const PlaneAxis horizontal = horizontal_.source(planes);
        const ResultTiles tiles(vertical_.end - vertical_.begin, horizontal_.end - horizontal_.begin,
                                table_.lanes, planes, horizontal.reach());
        return SourceWindow(tiles, vertical_.source(tiles.vertical_planes()), horizontal,
                            {shape_.groups, pattern_.rows / shape_.groups, pattern_.cin * planes_},
                            sizeof(A));
    }

    TapPlaces places(const SourceWindow& window) const {
        const int64_t rows_per_group = pattern_.rows / shape_.groups;
        TapPlaces places;
        for (int64_t n = 0; n < pattern_.rows; ++n) {
            places.of_row.push_back(window.place(n / rows_per_group, n % rows_per_group));
        }
        for (int64_t i = 0; i < pattern_.kh; ++i) {
            for (int64_t j = 0; j < pattern_.kw; ++j) {
                const int64_t plane = vertical_.input.tap_plane[i] * horizontal_.input.planes() +
                                      horizontal_.input.tap_plane[j];
                for (int64_t c = 0; c < pattern_.cin; ++c) {
                    places.of_column.push_back({c * planes_ + plane, window.tap_offset(i, j)});
                }
            }
        }
        return places;
    }

    // Stores rows r, r + planes, ... of the result: one plane of neighbouring channels.
    void store_plane(const SourceWindow& window, const ResultTile& tile, int64_t r, int64_t channels,
                     const A* sums, T* image) const {
        const PlaneAxis& v = vertical_.input;
        const PlaneAxis& h = horizontal_.input;
        const int64_t plane = r % planes_;
        const PlaneAxis::Span rows = v.span(plane / h.planes(), vertical_.begin + tile.row, tile.rows);
        const PlaneAxis::Span columns =
            h.span(plane % h.planes(), horizontal_.begin + tile.column, tile.columns);
        const int64_t width = tile.vectors * table_.lanes;
        const int64_t pitch = window.tiles().pitch();
        PixelBlock<T> to;
        to.data = image + (r / planes_ * v.extent + rows.source) * h.extent + columns.source;
        to.channel_stride = v.extent * h.extent;
        to.row_stride = v.step * h.extent;
        to.column_stride = h.step;
        to.channels = channels;
        to.rows = rows.inside;
        to.columns = columns.inside;
        unpack_pixels(table_, sums + rows.before * pitch + columns.before, {planes_ * width, pitch}, to);
    }

    const PatternView& pattern_;
    const Conv2dShape& shape_;
    int threads_;
    const KernelTable<A>& table_;
    GradAxis vertical_;
    GradAxis horizontal_;
    int64_t planes_;
};

}  // namespace

void conv2d_grad_input(DType dtype, const PatternView& pattern, const Conv2dShape& given, InputValues values,
                       InputValues grad_y, OutputValues grad_x, int threads) {
    const int64_t size = element_bytes(dtype);
    check_conv2d(pattern, given, "grad_x", grad_x, "grad_y", grad_y, size, threads);
    check_values("values", values, pattern.nnz, size);
    threads = conv2d_threads(pattern, grad_x.count, grad_y.count, threads);
    const Conv2dShape shape = flattened(pattern, given);
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        T* const to = static_cast<T*>(grad_x.data);
        if (grad_y.count == 0) {
            std::fill(to, to + grad_x.count, T{});
        } else {
            Conv2dGradInput<T>(pattern, shape, threads)
                .run(values.data, static_cast<const T*>(grad_y.data), to);
        }
    });
}

}  // namespace sparsekern
