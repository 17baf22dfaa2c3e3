#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "compute_values.h"
#include "images.h"
#include "sparsekern/conv2d.h"
#include "tile_schedule.h"
#include "transposed_matrix.h"

namespace sparsekern {
namespace {

// Each output pixel adds to the input pixels its taps read. A task owns one image, so the sums have one order.
template <class T>
class Conv2dGradInput {
    using A = AccumulateType<T>;

   public:
    Conv2dGradInput(const PatternView& pattern, const Conv2dShape& shape, const A* values, int threads)
        : pattern_(pattern),
          shape_(shape),
          table_(kernels<A>()),
          layout_(pattern, shape, table_.lanes),
          threads_(threads),
          row_offset_(layout_.column_offsets(pattern)),
          pixel_offset_(strided(pattern.tile_rows * pattern.tile_size, layout_.pixel_run)),
          no_offset_(static_cast<size_t>(pattern.tile_size), 0) {
        const int64_t rows_per_group = pattern.rows / shape.groups;
        for (int64_t g = 0; g < shape.groups; ++g) {
            groups_.push_back(std::make_unique<TransposedMatrix<A>>(pattern, values, g * rows_per_group,
                                                                    (g + 1) * rows_per_group, threads));
            const TileMatrix& matrix = groups_.back()->matrix();
            const int64_t panel_bytes = matrix.tile_size * layout_.panels.width * static_cast<int64_t>(sizeof(A));
            schedules_.push_back(
                TileSchedule::of_runs(matrix, std::max<int64_t>(1, kNearCacheBytes / panel_bytes)));
        }
    }

    void run(const T* grad_y, T* grad_x) const {
        // Images share the work when there are enough of them; otherwise their channels do as well.
        const int64_t parts = shape_.batch >= 2 * threads_
                                  ? 1
                                  : std::min<int64_t>(pattern_.cin, (2 * threads_ + shape_.batch - 1) / shape_.batch);
#pragma omp parallel num_threads(threads_) if (shape_.batch * parts > 1)
        {
            Buffer<A> pixels(pattern_.rows * layout_.pixel_run);
            Buffer<A> image(layout_.image_size);
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < shape_.batch * parts; ++task) {
                const int64_t index = task / parts;
                const int64_t part = task % parts;
                run_image(grad_y + index * pattern_.rows * layout_.out_size(), pattern_.cin * part / parts,
                          pattern_.cin * (part + 1) / parts, pixels.data(), image.data(),
                          grad_x + index * layout_.channels * shape_.height * shape_.width);
            }
        }
    }

   private:
    // Channels [begin, end) of every group of one image.
    void run_image(const T* grad_y, int64_t begin, int64_t end, A* pixels, A* image, T* grad_x) const {
        for (int64_t n = 0; n < pattern_.rows; ++n) {
            pack_pixels<T>(table_, layout_, grad_y + n * layout_.out_size(), pixels + n * layout_.pixel_run);
        }
        for (int64_t g = 0; g < shape_.groups; ++g) {
            const int64_t first = g * pattern_.cin;
            A* const to = image + first * layout_.channel_size;
            std::fill(to + begin * layout_.channel_size,
                      to + end * layout_.channel_size + (end == pattern_.cin ? kMaxVectors * table_.lanes : 0), A(0));
            for (int64_t panel = 0; panel < layout_.panels.panels; ++panel) {
                const int64_t at = layout_.panels.begin(panel);
                scatter(static_cast<size_t>(g), begin, end, pixels + at, to + at);
            }
            for (int64_t c = begin; c < end; ++c) {
                unpack_channel<T>(table_, layout_, to + c * layout_.channel_size,
                                  grad_x + (first + c) * shape_.height * shape_.width);
            }
        }
    }

    // Adds one panel of output pixels, over the weight's columns whose channel is in [begin, end).
    void scatter(size_t g, int64_t begin, int64_t end, const A* pixels, A* image) const {
        const TileMatrix& matrix = groups_[g]->matrix();
        const TileSchedule& schedule = schedules_[g];
        const auto accumulate = table_.accumulate[layout_.panels.width / table_.lanes];
        for (int64_t part = 0; part < schedule.groups(); ++part) {
            for (int64_t r = 0; r < matrix.tile_rows; ++r) {
                if (schedule.count(r, part) == 0) continue;
                const int64_t row = r * matrix.tile_size;
                const int64_t last = std::min(matrix.tile_size, matrix.rows - row);
                for (int64_t from = 0; from < last;) {
                    const int64_t channel = (row + from) % pattern_.cin;
                    const int64_t to = std::min(last, from + (channel < end ? end : pattern_.cin) - channel);
                    if (channel < begin) {
                        from = std::min(last, from + begin - channel);
                        continue;
                    }
                    if (channel < end) {
                        const PanelWork<A> work = {&matrix, schedule.tiles(r, part), schedule.count(r, part), from, to,
                                                   pixel_offset_.data(), pixels, no_offset_.data(), image,
                                                   row_offset_.data() + row};
                        accumulate(work, groups_[g]->values(), false, nullptr);
                    }
                    from = to;
                }
            }
        }
    }

    const PatternView& pattern_;
    const Conv2dShape& shape_;
    const KernelTable<A>& table_;
    ConvLayout layout_;
    int threads_;
    std::vector<int64_t> row_offset_;
    std::vector<int64_t> pixel_offset_;
    std::vector<int64_t> no_offset_;
    std::vector<std::unique_ptr<TransposedMatrix<A>>> groups_;
    std::vector<TileSchedule> schedules_;
};

}  // namespace

void conv2d_grad_input(DType dtype, const PatternView& pattern, const Conv2dShape& shape, InputValues values,
                       InputValues grad_y, OutputValues grad_x, int threads) {
    check_conv2d(pattern, shape, "grad_x", grad_x.count, "grad_y", grad_y.count, threads);
    check_values("values", values, pattern.nnz);
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        T* const to = static_cast<T*>(grad_x.data);
        if (grad_y.count == 0) {
            std::fill(to, to + grad_x.count, T{});
            return;
        }
        const ComputeValues<T> weights(values.data, values.count);
        Conv2dGradInput<T>(pattern, shape, weights.data(), threads).run(static_cast<const T*>(grad_y.data), to);
    });
}

}  // namespace sparsekern
