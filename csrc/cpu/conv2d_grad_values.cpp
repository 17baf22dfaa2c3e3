#include <algorithm>
#include <type_traits>

#include "compute_values.h"
#include "images.h"
#include "list_convolution.h"
#include "sparsekern/conv2d.h"

namespace sparsekern {
namespace {

// Parts of the batch with sums of their own, added up in order at the end. A constant of the problem, never
// of the number of threads: it decides the order of the sums.
constexpr int64_t kSplits = 16;
// Above this many values the parts' sums would be more than a cache holds, and rows are shared out instead.
constexpr int64_t kFewValues = int64_t{1} << 16;

// The last panel reads beyond its channel, where the gradient is 0. Zeros stand there, since 0 * NaN of the
// next channel would not be 0.
ConvLayout separated_layout(const PatternView& pattern, const Conv2dShape& shape, int64_t lanes) {
    ConvLayout layout(pattern, shape, lanes);
    const PixelGrid grid(layout.vertical.out, layout.horizontal.out, layout.pitch, lanes);
    const int64_t beyond = grid.panels.panels * grid.panels.width - grid.pixels;
    layout.channel_size = spread_size(layout.phases * layout.plane_size + beyond, lanes);
    return layout;
}

template <class T>
class Conv2dGradValues {
    using A = AccumulateType<T>;

public:
    Conv2dGradValues(const PatternView& pattern, const Conv2dShape& shape, const T* grad_y, const T* x,
                     int threads)
        : pattern_(pattern),
          shape_(shape),
          grad_y_(grad_y),
          x_(x),
          threads_(threads),
          table_(kernels<A>()),
          layout_(separated_layout(pattern, shape, table_.lanes)),
          grid_(layout_.vertical.out, layout_.horizontal.out, layout_.pitch, table_.lanes),
          pixel_run_(grid_.panels.panels * grid_.panels.width),
          list_(pattern,
                forward_places(
                    pattern, shape, layout_,
                    TapGroups::fitting<A>(grid_, pattern.cin, pattern.kh, layout_.vertical.tap_shift.back())),
                [](int64_t index) { return index; }) {
        check_image_size(layout_.image_size() + beyond());
    }

    void run(A* out) const {
        std::fill(out, out + pattern_.nnz, A(0));
        if (pattern_.nnz <= kFewValues) {
            run_splits(out);
        } else {
            run_rows(out);
        }
    }

private:
    int64_t beyond() const { return kMaxVectors * table_.lanes; }

    const A* image(int64_t index, A* scratch) const {
        const T* const from = x_ + index * layout_.channels * shape_.height * shape_.width;
        if constexpr (std::is_same<T, A>::value) {
            if (layout_.is_identity() && index + 1 < shape_.batch && layout_.image_size() >= beyond())
                return from;
        }
        pack_image<T>(table_, layout_, from, scratch, beyond());
        return scratch;
    }

    // Output gradients of some rows of one image, with zeros in the surplus pixels.
    void pack_pixels(int64_t index, int64_t row, int64_t rows, A* to) const {
        const int64_t out = layout_.horizontal.out;
        for (int64_t n = row; n < row + rows; ++n, to += pixel_run_) {
            const T* const from = grad_y_ + (index * pattern_.rows + n) * layout_.out_size();
            pack_rows<T>(table_, {from, 1, out, out, layout_.vertical.out}, to, layout_.pitch,
                         to + pixel_run_);
        }
    }

    void add_rows(const A* image, const A* pixels, int64_t row, int64_t rows, A* out) const {
        const auto dot = table_.dot_list[grid_.panels.width / table_.lanes];
        for (int64_t panel = 0; panel < grid_.panels.panels; ++panel) {
            const int64_t at = grid_.panels.begin(panel);
            for (int64_t g = 0; g < list_.groups(); ++g) {
                dot({list_.ptr(g) + row, rows, list_.offset(), image + at, const_cast<A*>(pixels) + at,
                     pixel_run_},
                    list_.payload(), out);
            }
        }
    }

    void run_splits(A* out) const {
        const int64_t splits = std::min(kSplits, shape_.batch);
        const int64_t nnz = pattern_.nnz;
        Buffer<A> partial(nnz * (splits - 1));
        std::fill(partial.data(), partial.data() + nnz * (splits - 1), A(0));
#pragma omp parallel num_threads(threads_)
        {
            Buffer<A> scratch(layout_.image_size() + beyond());
            Buffer<A> pixels(pattern_.rows * pixel_run_);
#pragma omp for schedule(dynamic)
            for (int64_t split = 0; split < splits; ++split) {
                A* const to = split == 0 ? out : partial.data() + (split - 1) * nnz;
                const int64_t end = shape_.batch * (split + 1) / splits;
                for (int64_t i = shape_.batch * split / splits; i < end; ++i) {
                    pack_pixels(i, 0, pattern_.rows, pixels.data());
                    add_rows(image(i, scratch.data()), pixels.data(), 0, pattern_.rows, to);
                }
            }
        }
        for (int64_t split = 1; split < splits; ++split) {
            const A* const from = partial.data() + (split - 1) * nnz;
            for (int64_t i = 0; i < nnz; ++i) out[i] += from[i];
        }
    }

    // Every thread adds up all images, in order, for rows of its own.
    void run_rows(A* out) const {
        const int64_t parts = std::min<int64_t>(pattern_.rows, threads_);
        Buffer<A> scratch(layout_.image_size() + beyond());
        for (int64_t i = 0; i < shape_.batch; ++i) {
            const A* const source = image(i, scratch.data());
#pragma omp parallel for schedule(static) num_threads(threads_)
            for (int64_t part = 0; part < parts; ++part) {
                const int64_t row = pattern_.rows * part / parts;
                const int64_t rows = pattern_.rows * (part + 1) / parts - row;
                Buffer<A> pixels(rows * pixel_run_);
                pack_pixels(i, row, rows, pixels.data());
                add_rows(source, pixels.data(), row, rows, out);
            }
        }
    }

    const PatternView& pattern_;
    const Conv2dShape& shape_;
    const T* grad_y_;
    const T* x_;
    int threads_;
    const KernelTable<A>& table_;
    ConvLayout layout_;
    PixelGrid grid_;
    int64_t pixel_run_;
    TapList<int64_t> list_;
};

}  // namespace

void conv2d_grad_values(DType dtype, const PatternView& pattern, const Conv2dShape& shape, InputValues grad_y,
                        InputValues x, OutputValues grad_values, int threads) {
    check_conv2d(pattern, shape, "x", x, "grad_y", grad_y, threads);
    check_values("grad_values", grad_values, pattern.nnz);
    if (pattern.nnz == 0) return;
    threads = conv2d_threads(pattern, shape, threads);
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        using A = AccumulateType<T>;
        ComputeOutput<T> out(grad_values.data, grad_values.count);
        if (grad_y.count == 0) {
            std::fill(out.data(), out.data() + pattern.nnz, A(0));
        } else {
            Conv2dGradValues<T>(pattern, shape, static_cast<const T*>(grad_y.data),
                                static_cast<const T*>(x.data), threads)
                .run(out.data());
        }
        out.finish();
    });
}

}  // namespace sparsekern
