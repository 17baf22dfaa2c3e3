#include <algorithm>
#include <vector>

#include "compute_values.h"
#include "conv2d_check.h"
#include "conv2d_input.h"
#include "list_convolution.h"
#include "sparsekern/conv2d.h"

namespace sparsekern {
namespace {

// Value i of the lists' payload is its index among the weight's values.
struct Indices {
    int64_t operator[](int64_t i) const { return i; }
};

template <class T>
class Conv2dGradValues {
    using A = AccumulateType<T>;
    // Parts of the batch with sums of their own, added up in order at the end: up to so many, which take up
    // to so many values. Constants of the problem, never of the number of threads: they decide the order of
    // the sums.
    static constexpr int64_t kSplits = 16;
    static constexpr int64_t kSplitValues = int64_t{1} << 18;

public:
    Conv2dGradValues(const PatternView& pattern, const Conv2dShape& shape, const T* grad_y, const T* x,
                     int threads)
        : pattern_(pattern),
          shape_(shape),
          grad_y_(grad_y),
          x_(x),
          threads_(threads),
          table_(kernels<A>()),
          out_width_(shape.out_extent(1, pattern.kw)),
          out_size_(shape.out_extent(0, pattern.kh) * out_width_),
          window_(input_window(pattern, shape, table_.lanes, sizeof(A))),
          list_(pattern, window_, input_places(pattern, shape, window_), Indices(), threads) {}

    void run(A* out) const {
        const int64_t splits =
            std::clamp<int64_t>(kSplitValues / pattern_.nnz, 1, std::min(kSplits, shape_.batch));
        Buffer<A> dots(splits * pattern_.nnz);
        add_all(splits, dots.data());
#pragma omp parallel for schedule(static) num_threads(threads_)
        for (int64_t i = 0; i < pattern_.nnz; ++i) {
            A sum = dots[i];
            for (int64_t split = 1; split < splits; ++split) sum += dots[split * pattern_.nnz + i];
            out[list_.payload()[i]] = sum;
        }
    }

private:
    // The dots of each part of the batch, in the order of the lists.
    void add_all(int64_t splits, A* dots) const {
        const int64_t width = window_.tiles().max_vectors() * table_.lanes;
        const int64_t parts =
            row_parts(pattern_.rows, width * static_cast<int64_t>(sizeof(A)), splits, threads_);
        const int64_t part_rows = divide_up(pattern_.rows, parts);
        std::fill(dots, dots + splits * pattern_.nnz, A(0));
        Team team;
#pragma omp parallel num_threads(threads_)
        {
            auto scratch = team.scratch([&] { return WindowScratch<A>(window_, part_rows * width); });
#pragma omp for schedule(static)
            for (int64_t task = 0; task < (scratch ? splits * parts : 0); ++task) {
                const int64_t split = task / parts;
                const int64_t row = task % parts * part_rows;
                const int64_t end = std::min(row + part_rows, pattern_.rows);
                if (row >= end) continue;
                for (int64_t i = shape_.batch * split / splits; i < shape_.batch * (split + 1) / splits;
                     ++i) {
                    add_image(i, row, end, *scratch, dots + split * pattern_.nnz);
                }
            }
        }
        team.rethrow();
    }

    void add_image(int64_t index, int64_t begin, int64_t end, WindowScratch<A>& scratch, A* dots) const {
        const T* const image = x_ + index * window_.image_size();
        stream_in(image, window_.image_size());
        stream_in(grad_y_ + (index * pattern_.rows + begin) * out_size_, (end - begin) * out_size_);
        for (int64_t w = 0; w < window_.windows(); ++w) {
            for_each_block(window_, table_, image, w, begin, end, scratch,
                           [&](const ChannelBlock& block, int64_t first, int64_t last) {
                               add_block(index, w, block, first, last, scratch, dots);
                           });
        }
    }

    void add_block(int64_t image, int64_t window, const ChannelBlock& block, int64_t first, int64_t last,
                   WindowScratch<A>& scratch, A* dots) const {
        for (int64_t i = 0; i < window_.tile_count(window); ++i) {
            const ResultTile tile = window_.tile(window, i);
            if (block.first) pack_gradient(image, tile, first, last, scratch.rows.data());
            table_.dot_list[tile.vectors]({list_.ptr(block, first), last - first, list_.offset(),
                                           scratch.window.data() + window_.tile_offset(i),
                                           scratch.rows.data(), tile.vectors * table_.lanes},
                                          dots);
        }
    }

    // Output gradients of a tile's pixels for some rows, with zeros where its vectors have no pixel.
    void pack_gradient(int64_t image, const ResultTile& tile, int64_t begin, int64_t end, A* to) const {
        const T* const from =
            grad_y_ + (image * pattern_.rows + begin) * out_size_ + tile.row * out_width_ + tile.column;
        const int64_t width = tile.vectors * table_.lanes;
        const PixelPlane plane = {0, tile.rows, tile.columns, 0, 0};
        pack_planes(table_,
                    PlaneWork<T>{from, end - begin, out_size_, out_width_, 1, &plane, 1, width,
                                 window_.tiles().pitch()},
                    to);
    }

    const PatternView& pattern_;
    const Conv2dShape& shape_;
    const T* grad_y_;
    const T* x_;
    int threads_;
    const KernelTable<A>& table_;
    int64_t out_width_;
    int64_t out_size_;
    SourceWindow window_;
    TapList<int64_t> list_;
};

}  // namespace

void conv2d_grad_values(DType dtype, const PatternView& pattern, const Conv2dShape& given, InputValues grad_y,
                        InputValues x, OutputValues grad_values, int threads) {
    const int64_t size = element_bytes(dtype);
    check_conv2d(pattern, given, "x", x, "grad_y", grad_y, size, threads);
    check_values("grad_values", grad_values, pattern.nnz, size);
    if (pattern.nnz == 0) return;
    threads = conv2d_threads(pattern, x.count, grad_y.count, threads);
    const Conv2dShape shape = flattened(pattern, given);
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
