#include <algorithm>
#include <type_traits>
#include <vector>

#include "compute_values.h"
#include "images.h"
#include "sparsekern/conv2d.h"
#include "tile_schedule.h"
#include "transposed_matrix.h"

namespace sparsekern {
namespace {

// Constants of the problem, never of the number of threads: they decide the order of the sums.
constexpr int64_t kScratchBytes = int64_t{1} << 20;
constexpr int64_t kEnoughRows = 8;
constexpr int64_t kSplits = 16;

template <class T>
class Conv2dGradValues {
    using A = AccumulateType<T>;

   public:
    Conv2dGradValues(const PatternView& pattern, const Conv2dShape& shape, int threads)
        : shape_(shape),
          table_(kernels<A>()),
          layout_(pattern, shape, table_.lanes),
          matrix_(as_matrix(pattern)),
          nnz_(pattern.nnz),
          splits_(matrix_.tile_rows < kEnoughRows ? std::min(kSplits, shape.batch) : 1),
          threads_(threads),
          column_offset_(layout_.column_offsets(pattern)),
          pixel_row_(strided(matrix_.tile_size, layout_.pixel_run)) {
        const int64_t rows_per_group = pattern.rows / shape.groups;
        x_row_.resize(static_cast<size_t>(matrix_.tile_rows * matrix_.tile_size), 0);
        for (int64_t n = 0; n < matrix_.rows; ++n) {
            x_row_[static_cast<size_t>(n)] = n / rows_per_group * pattern.cin * layout_.channel_size;
        }
    }

    void run(const T* grad_y, const T* x, A* out) const {
        std::fill(out, out + nnz_, A(0));
        if (splits_ > 1) {
            run_splits(grad_y, x, out);
        } else {
            run_rows(grad_y, x, out);
        }
    }

   private:
    void pack_x(const T* x, int64_t index, int64_t channel, A* to) const {
        pack_channel<T>(table_, layout_, x + (index * layout_.channels + channel) * shape_.height * shape_.width, to);
    }
    void pack_grad(const T* grad_y, int64_t index, int64_t row, A* to) const {
        pack_pixels<T>(table_, layout_, grad_y + (index * matrix_.rows + row) * layout_.out_size(), to);
    }

    // Few rows of tiles: the batch is cut into parts with sums of their own, added up in order at the end. Each
    // image is packed and used while it is in its thread's cache.
    void run_splits(const T* grad_y, const T* x, A* out) const {
        Buffer<A> partial(nnz_ * (splits_ - 1));
        std::fill(partial.data(), partial.data() + nnz_ * (splits_ - 1), A(0));
#pragma omp parallel num_threads(threads_)
        {
            Buffer<A> image(layout_.image_size);
            Buffer<A> pixels(matrix_.rows * layout_.pixel_run);
            std::fill(image.data(), image.data() + layout_.image_size, A(0));
#pragma omp for schedule(dynamic)
            for (int64_t split = 0; split < splits_; ++split) {
                A* const to = split == 0 ? out : partial.data() + (split - 1) * nnz_;
                const int64_t end = shape_.batch * (split + 1) / splits_;
                for (int64_t i = shape_.batch * split / splits_; i < end; ++i) {
                    for (int64_t c = 0; c < layout_.channels; ++c) {
                        pack_x(x, i, c, image.data() + c * layout_.channel_size);
                    }
                    for (int64_t n = 0; n < matrix_.rows; ++n) {
                        pack_grad(grad_y, i, n, pixels.data() + n * layout_.pixel_run);
                    }
                    for (int64_t r = 0; r < matrix_.tile_rows; ++r) add_image(r, image.data(), pixels.data(), to);
                }
            }
        }
        for (int64_t split = 1; split < splits_; ++split) {
            const A* from = partial.data() + (split - 1) * nnz_;
            for (int64_t i = 0; i < nnz_; ++i) out[i] += from[i];
        }
    }

    // Many rows of tiles: they are shared out, and each adds up the images in order.
    void run_rows(const T* grad_y, const T* x, A* out) const {
        const int64_t pixels_size = matrix_.rows * layout_.pixel_run;
        const int64_t bytes = (layout_.image_size + pixels_size) * static_cast<int64_t>(sizeof(A));
        const int64_t together = std::clamp<int64_t>(kScratchBytes / bytes, 1, shape_.batch);
        ImageStack<A> images(layout_.channels, layout_.channel_size, layout_.image_size, together);
        ImageStack<A> pixels(matrix_.rows, layout_.pixel_run, pixels_size, together);
        for (int64_t first = 0; first < shape_.batch; first += together) {
            const int64_t count = std::min(together, shape_.batch - first);
            images.fill(count, threads_,
                        [&](int64_t index, int64_t c, A* to) { pack_x(x, first + index, c, to); });
            pixels.fill(count, threads_,
                        [&](int64_t index, int64_t n, A* to) { pack_grad(grad_y, first + index, n, to); });
#pragma omp parallel for schedule(dynamic) num_threads(threads_) if (matrix_.tile_rows > 1)
            for (int64_t r = 0; r < matrix_.tile_rows; ++r) {
                for (int64_t i = 0; i < count; ++i) add_image(r, images.image(i), pixels.image(i), out);
            }
        }
    }

    void add_image(int64_t tile_row, const A* image, const A* pixels, A* out) const {
        const auto dot = table_.dot[layout_.panels.width / table_.lanes];
        const int64_t row = tile_row * matrix_.tile_size;
        // Tiles of one row are neighbours; the kernel takes them as a list of indices.
        const int32_t begin = matrix_.tile_row_ptr[tile_row];
        std::vector<int32_t> tiles(static_cast<size_t>(matrix_.tile_row_ptr[tile_row + 1] - begin));
        for (size_t i = 0; i < tiles.size(); ++i) tiles[i] = begin + static_cast<int32_t>(i);
        for (int64_t panel = 0; panel < layout_.panels.panels; ++panel) {
            const int64_t at = layout_.panels.begin(panel);
            const PanelWork<A> work = {&matrix_,
                                       tiles.data(),
                                       static_cast<int64_t>(tiles.size()),
                                       0,
                                       std::min(matrix_.tile_size, matrix_.rows - row),
                                       column_offset_.data(),
                                       image + at,
                                       x_row_.data() + row,
                                       const_cast<A*>(pixels) + row * layout_.pixel_run + at,
                                       pixel_row_.data()};
            dot(work, out, false);
        }
    }

    const Conv2dShape& shape_;
    const KernelTable<A>& table_;
    ConvLayout layout_;
    TileMatrix matrix_;
    int64_t nnz_;
    int64_t splits_;
    int threads_;
    std::vector<int64_t> column_offset_;
    std::vector<int64_t> pixel_row_;
    std::vector<int64_t> x_row_;
};

}  // namespace

void conv2d_grad_values(DType dtype, const PatternView& pattern, const Conv2dShape& shape, InputValues grad_y,
                        InputValues x, OutputValues grad_values, int threads) {
    check_conv2d(pattern, shape, "x", x.count, "grad_y", grad_y.count, threads);
    check_values("grad_values", grad_values, pattern.nnz);
    if (pattern.nnz == 0) return;
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        using A = AccumulateType<T>;
        ComputeOutput<T> out(grad_values.data, grad_values.count);
        if (grad_y.count == 0) {
            std::fill(out.data(), out.data() + pattern.nnz, A(0));
        } else {
            Conv2dGradValues<T>(pattern, shape, threads)
                .run(static_cast<const T*>(grad_y.data), static_cast<const T*>(x.data), out.data());
        }
        out.finish();
    });
}

}  // namespace sparsekern
