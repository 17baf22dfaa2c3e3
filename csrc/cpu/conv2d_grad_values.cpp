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
constexpr int64_t kScratchBytes = int64_t{8} << 20;
constexpr int64_t kEnoughTasks = 16;

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
          splits_(std::clamp<int64_t>(kEnoughTasks / matrix_.tile_rows, 1, shape.batch)),
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
        const int64_t pixels_size = matrix_.rows * layout_.pixel_run;
        const int64_t bytes = (layout_.image_size + pixels_size) * static_cast<int64_t>(sizeof(A));
        const int64_t together = std::clamp<int64_t>(kScratchBytes / bytes, splits_, shape_.batch);
        const int64_t in_size = shape_.height * shape_.width;
        ImageStack<A> images(layout_.channels, layout_.channel_size, layout_.image_size, together);
        ImageStack<A> pixels(matrix_.rows, layout_.pixel_run, pixels_size, together);
        Buffer<A> partial(nnz_ * (splits_ - 1));
        std::fill(out, out + nnz_, A(0));
        std::fill(partial.data(), partial.data() + nnz_ * (splits_ - 1), A(0));
        for (int64_t first = 0; first < shape_.batch; first += together) {
            const int64_t count = std::min(together, shape_.batch - first);
            images.fill(count, threads_, [&](int64_t index, int64_t channel, A* to) {
                pack_channel<T>(table_, layout_, x + ((first + index) * layout_.channels + channel) * in_size, to);
            });
            pixels.fill(count, threads_, [&](int64_t index, int64_t row, A* to) {
                pack_pixels<T>(table_, layout_, grad_y + ((first + index) * matrix_.rows + row) * layout_.out_size(),
                               to);
            });
#pragma omp parallel for schedule(dynamic) num_threads(threads_) if (matrix_.tile_rows * splits_ > 1)
            for (int64_t task = 0; task < matrix_.tile_rows * splits_; ++task) {
                const int64_t split = task % splits_;
                A* const to = split == 0 ? out : partial.data() + (split - 1) * nnz_;
                for (int64_t i = count * split / splits_; i < count * (split + 1) / splits_; ++i) {
                    add_image(task / splits_, images.image(i), pixels.image(i), to);
                }
            }
        }
        for (int64_t split = 1; split < splits_; ++split) {
            const A* from = partial.data() + (split - 1) * nnz_;
            for (int64_t i = 0; i < nnz_; ++i) out[i] += from[i];
        }
    }

   private:
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
