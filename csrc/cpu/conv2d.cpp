#include "sparsekern/conv2d.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "compute_values.h"
#include "images.h"
#include "tile_schedule.h"
#include "transposed_matrix.h"

namespace sparsekern {
namespace {

// Taps that differ only in their horizontal shift read the same pixels, so their tiles are visited together where
// tiles do not straddle taps; elsewhere neighbouring tiles are.
TileSchedule tap_schedule(const PatternView& pattern, const TileMatrix& matrix, int64_t panel_bytes) {
    if (pattern.cin % pattern.tile_size != 0) {
        return TileSchedule::of_runs(matrix, std::max<int64_t>(1, kNearCacheBytes / panel_bytes));
    }
    const int64_t per_tap = pattern.cin / pattern.tile_size;
    std::vector<int32_t> group(static_cast<size_t>(matrix.tile_cols));
    for (int64_t c = 0; c < matrix.tile_cols; ++c) {
        group[static_cast<size_t>(c)] = static_cast<int32_t>(c / (per_tap * pattern.kw) * per_tap + c % per_tap);
    }
    return TileSchedule(matrix, group, pattern.kh * per_tap);
}

template <class T>
class Conv2dForward {
    using A = AccumulateType<T>;

   public:
    Conv2dForward(const PatternView& pattern, const Conv2dShape& shape, const A* values, const A* bias, int threads)
        : shape_(shape),
          table_(kernels<A>()),
          layout_(pattern, shape, table_.lanes),
          matrix_(as_matrix(pattern)),
          schedule_(tap_schedule(pattern, matrix_,
                                 pattern.tile_size * layout_.panels.width * static_cast<int64_t>(sizeof(A)))),
          column_offset_(layout_.column_offsets(pattern)),
          values_(values),
          bias_(bias),
          threads_(threads) {
        const int64_t rows_per_group = pattern.rows / shape.groups;
        x_row_.resize(static_cast<size_t>(matrix_.tile_rows * matrix_.tile_size), 0);
        for (int64_t n = 0; n < matrix_.rows; ++n) {
            x_row_[static_cast<size_t>(n)] = n / rows_per_group * pattern.cin * layout_.channel_size;
        }
    }

    void run(const T* x, T* y) const {
        if (shape_.batch >= 2 * threads_) return run_images(x, y);
        const int64_t in_size = shape_.height * shape_.width;
        ImageStack<A> images(layout_.channels, layout_.channel_size, layout_.image_size, shape_.batch);
        images.fill(shape_.batch, threads_, [&](int64_t index, int64_t channel, A* to) {
            pack_channel<T>(table_, layout_, x + (index * layout_.channels + channel) * in_size, to);
        });
        run_rows(images, y);
    }

   private:
    // Enough images for every thread: each packs one and convolves it while it is in its cache.
    void run_images(const T* x, T* y) const {
        const std::vector<int64_t> y_row = strided(matrix_.tile_size, layout_.panels.width);
        const int64_t chunk = rows_together();
        const int64_t in_size = shape_.height * shape_.width;
#pragma omp parallel num_threads(threads_)
        {
            Buffer<A> sums(chunk * matrix_.tile_size * layout_.panels.width);
            Buffer<A> image(layout_.image_size);
#pragma omp for schedule(dynamic)
            for (int64_t index = 0; index < shape_.batch; ++index) {
                const T* const from = x + index * layout_.channels * in_size;
                for (int64_t c = 0; c < layout_.channels; ++c) {
                    pack_channel<T>(table_, layout_, from + c * in_size, image.data() + c * layout_.channel_size);
                }
                std::fill(image.data() + layout_.channels * layout_.channel_size, image.data() + layout_.image_size,
                          A(0));
                for (int64_t begin = 0; begin < matrix_.tile_rows; begin += chunk) {
                    convolve(image.data(), begin, std::min(begin + chunk, matrix_.tile_rows), y_row.data(),
                             sums.data(), y + index * matrix_.rows * layout_.out_size());
                }
            }
        }
    }

    // Few images: their rows of tiles are shared out.
    void run_rows(const ImageStack<A>& images, T* y) const {
        const std::vector<int64_t> y_row = strided(matrix_.tile_size, layout_.panels.width);
        const int64_t even = (matrix_.tile_rows * shape_.batch + 4 * threads_ - 1) / (4 * threads_);
        const int64_t chunk = std::min(rows_together(), std::max<int64_t>(1, even));
        const int64_t chunks = (matrix_.tile_rows + chunk - 1) / chunk;
#pragma omp parallel num_threads(threads_) if (shape_.batch * chunks > 1)
        {
            Buffer<A> sums(chunk * matrix_.tile_size * layout_.panels.width);
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < shape_.batch * chunks; ++task) {
                const int64_t begin = task % chunks * chunk;
                convolve(images.image(task / chunks), begin, std::min(begin + chunk, matrix_.tile_rows), y_row.data(),
                         sums.data(), y + task / chunks * matrix_.rows * layout_.out_size());
            }
        }
    }

    // Rows of tiles whose sums stay in a core's own cache.
    int64_t rows_together() const {
        const int64_t row_bytes = matrix_.tile_size * layout_.panels.width * static_cast<int64_t>(sizeof(A));
        return std::clamp<int64_t>(kPrivateCacheBytes / 4 / row_bytes, 1, matrix_.tile_rows);
    }

    // The rows of tiles [begin, end) of one image.
    void convolve(const A* image, int64_t begin, int64_t end, const int64_t* y_row, A* sums, T* y) const {
        for (int64_t panel = 0; panel < layout_.panels.panels; ++panel) {
            multiply_rows(image + layout_.panels.begin(panel), begin, end, y_row, sums);
            store_pixels(sums, begin, end, panel, y);
        }
    }

    void multiply_rows(const A* x, int64_t begin, int64_t end, const int64_t* y_row, A* sums) const {
        const int64_t width = layout_.panels.width;
        const auto accumulate = table_.accumulate[width / table_.lanes];
        for (int64_t g = 0; g < schedule_.groups(); ++g) {
            for (int64_t r = begin; r < end; ++r) {
                const int64_t row = r * matrix_.tile_size;
                const PanelWork<A> work = {&matrix_,
                                           schedule_.tiles(r, g),
                                           schedule_.count(r, g),
                                           0,
                                           std::min(matrix_.tile_size, matrix_.rows - row),
                                           column_offset_.data(),
                                           x,
                                           x_row_.data() + row,
                                           sums + (r - begin) * matrix_.tile_size * width,
                                           y_row};
                if (work.tile_count == 0 && g > 0) continue;
                accumulate(work, values_, g == 0, bias_ != nullptr ? bias_ + row : nullptr);
            }
        }
    }

    // Writes a panel of the rows' pixels, without the surplus columns.
    void store_pixels(const A* sums, int64_t begin, int64_t end, int64_t panel, T* y) const {
        const int64_t plane = layout_.horizontal.plane;
        const int64_t out = layout_.horizontal.out;
        const int64_t first = layout_.panels.begin(panel);
        const int64_t last = first + layout_.panels.count(panel, layout_.pixels);
        const int64_t rows = std::min(end * matrix_.tile_size, matrix_.rows) - begin * matrix_.tile_size;
        T* const to = y + begin * matrix_.tile_size * layout_.out_size();
        for (int64_t i = first / plane; i * plane < last; ++i) {
            const int64_t left = std::max(first, i * plane);
            const int64_t count = std::min(last, i * plane + out) - left;
            if (count <= 0) continue;
            unpack(table_, sums + left - first, layout_.panels.width,
                   Samples<T>{to + i * out + left - i * plane, 1, layout_.out_size(), count, rows});
        }
    }

    const Conv2dShape& shape_;
    const KernelTable<A>& table_;
    ConvLayout layout_;
    TileMatrix matrix_;
    TileSchedule schedule_;
    std::vector<int64_t> column_offset_;
    std::vector<int64_t> x_row_;
    const A* values_;
    const A* bias_;
    int threads_;
};

}  // namespace

void conv2d(DType dtype, const PatternView& pattern, const Conv2dShape& shape, InputValues values, InputValues x,
            InputValues bias, OutputValues y, int threads) {
    check_conv2d(pattern, shape, "x", x.count, "y", y.count, threads);
    check_values("values", values, pattern.nnz);
    if (bias.data != nullptr) check_values("bias", bias, pattern.rows);
    if (y.count == 0) return;
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        const ComputeValues<T> weights(values.data, values.count);
        const ComputeValues<T> start(bias.data, bias.data != nullptr ? bias.count : 0);
        Conv2dForward<T>(pattern, shape, weights.data(), start.data(), threads)
            .run(static_cast<const T*>(x.data), static_cast<T*>(y.data));
    });
}

}  // namespace sparsekern
