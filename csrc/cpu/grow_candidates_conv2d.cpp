#include <algorithm>
#include <type_traits>

#include "candidate_passes.h"
#include "conv2d_check.h"
#include "panels.h"

namespace sparsekern {
namespace {

// The pixels of a convolution's output as samples: y[pixel, n] is its gradient there, and x[pixel, (i, j, c)]
// what the tap (i, j) reads of channel c. Panels are unfolded from the images as they are packed.
template <class T>
class Conv2dSource {
public:
    using Sum = AccumulateType<T>;

    Conv2dSource(const PatternView& pattern, const Conv2dShape& shape, const T* grad_y, const T* x)
        : pattern_(pattern),
          shape_(shape),
          grad_y_(grad_y),
          x_(x),
          out_width_(shape.out_extent(1, pattern.kw)),
          out_size_(shape.out_extent(0, pattern.kh) * out_width_),
          image_size_(shape.height * shape.width) {}

    int64_t samples() const { return shape_.batch * out_size_; }

    void pack_rows(const KernelTable<Sum>& table, int64_t first, int64_t samples, int64_t row, int64_t rows,
                   Sum* to) const {
        for (const int64_t end = first + samples; first < end;) {
            const int64_t pixel = first % out_size_;
            const int64_t count = std::min(end - first, out_size_ - pixel);
            const T* from = grad_y_ + (first / out_size_ * pattern_.rows + row) * out_size_ + pixel;
            pack(table, Samples<const T>{from, out_size_, 1, rows, count}, to, table.outer_rows);
            first += count;
            to += count * table.outer_rows;
        }
    }

    void pack_columns(const KernelTable<Sum>& table, int64_t row, int64_t first, int64_t samples,
                      int64_t column, int64_t columns, Sum* to) const {
        const int64_t group = row / (pattern_.rows / shape_.groups);
        for (const int64_t end = first + samples; first < end;) {
            const int64_t pixel = first % out_size_;
            const int64_t in_row = pixel % out_width_;
            const int64_t count = std::min(end - first, out_width_ - in_row);
            const int64_t image = first / out_size_ * shape_.groups + group;
            const Segment segment = {x_ + image * pattern_.cin * image_size_, pixel / out_width_, in_row,
                                     count};
            pack_segment(table, segment, column, columns, to);
            first += count;
            to += count * table.outer_columns;
        }
    }

private:
    // Neighbouring pixels of one row of an output, and the channels of a group that they are computed from.
    struct Segment {
        const T* channels;
        int64_t row;
        int64_t column;
        int64_t count;
    };

    void pack_segment(const KernelTable<Sum>& table, const Segment& segment, int64_t column, int64_t columns,
                      Sum* to) const {
        const int64_t width = table.outer_columns;
        std::fill(to, to + segment.count * width, Sum(0));
        for (int64_t c = column; c < column + columns;) {
            const int64_t tap = c / pattern_.cin;
            const int64_t channel = c % pattern_.cin;
            const int64_t run = std::min(pattern_.cin - channel, column + columns - c);
            Samples<const T> pixels = {nullptr, image_size_, shape_.stride[1], run, 0};
            const int64_t before = locate(segment, tap, channel, pixels);
            Sum* const out = to + before * width + (c - column);
            if (run == columns) {
                pack(table, pixels, out, width);
            } else {
                copy(pixels, out, width);
            }
            c += run;
        }
    }

    // The pixels that a tap reads for a segment, without those outside the image; returns how many of these
    // come first.
    int64_t locate(const Segment& segment, int64_t tap, int64_t channel, Samples<const T>& pixels) const {
        const int64_t stride = shape_.stride[1];
        const int64_t y = segment.row * shape_.stride[0] + tap / pattern_.kw * shape_.dilation[0];
        const int64_t x = segment.column * stride + tap % pattern_.kw * shape_.dilation[1];
        const int64_t image_row = y - shape_.padding[0];
        const int64_t image_column = x - shape_.padding[1];
        if (image_row < 0 || image_row >= shape_.height) return 0;
        const int64_t before = divide_up(std::max<int64_t>(-image_column, 0), stride);
        const int64_t end = divide_up(std::max<int64_t>(shape_.width - image_column, 0), stride);
        pixels.features = std::max<int64_t>(std::min(end, segment.count) - before, 0);
        if (pixels.features == 0) return 0;
        pixels.data = segment.channels + channel * image_size_ + image_row * shape_.width + image_column +
                      before * stride;
        return before;
    }

    static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

    static void copy(const Samples<const T>& pixels, Sum* to, int64_t width) {
        for (int64_t c = 0; c < pixels.count; ++c) {
            const T* const from = pixels.data + c * pixels.sample_stride;
            for (int64_t i = 0; i < pixels.features; ++i) {
                to[i * width + c] = widened(from[i * pixels.feature_stride]);
            }
        }
    }

    static float widened(float value) { return value; }
    static double widened(double value) { return value; }
    static float widened(BFloat16 value) {
        const uint32_t word = static_cast<uint32_t>(value.bits) << 16;
        float wide;
        std::memcpy(&wide, &word, sizeof(wide));
        return wide;
    }

    PatternView pattern_;
    Conv2dShape shape_;
    const T* grad_y_;
    const T* x_;
    int64_t out_width_;
    int64_t out_size_;
    int64_t image_size_;
};

}  // namespace

std::unique_ptr<GrowCandidates> grow_candidates_conv2d(DType dtype, const PatternView& pattern,
                                                       const Conv2dShape& given, InputValues grad_y,
                                                       InputValues x, int threads) {
    check_conv2d(pattern, given, "x", x, "grad_y", grad_y, element_bytes(dtype), threads);
    const Conv2dShape shape = flattened(pattern, given);
    const auto positions = static_cast<double>(pattern.rows * pattern.cols);
    const auto pixels = static_cast<double>(grad_y.count / pattern.rows);
    threads = worthwhile_threads(threads, positions * pixels / 2, positions);
    std::unique_ptr<GrowCandidates> passes;
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        Conv2dSource<T> source(pattern, shape, static_cast<const T*>(grad_y.data),
                               static_cast<const T*>(x.data));
        passes = std::make_unique<CandidatePasses<Conv2dSource<T>>>(pattern, source, shape.groups, threads);
    });
    return passes;
}

}  // namespace sparsekern
