#include "linear_narrow.h"

#include <omp.h>

#include <algorithm>

#include "buffer.h"
#include "panels.h"
#include "tile_schedule.h"

namespace sparsekern {
namespace {

// Features that every row of some neighbouring tiles reads, in the nearest cache beside the lists.
constexpr int64_t kGroupBytes = 24 << 10;

// Values in a list from which on the end of its loop costs little.
constexpr int64_t kEnoughValues = 48;

// Rows whose products are summed on their own: one long chain of additions would lose digits.
constexpr int64_t kRowsTogether = 1024;

constexpr int64_t kFeaturesPerTask = 512;

// The whole batch as one panel, with room for every column of the last tile.
template <class T>
class NarrowPanel {
    using A = AccumulateType<T>;

public:
    NarrowPanel(int64_t samples, int64_t features, int64_t tiles, int64_t tile_size)
        : width_(narrow_width(samples, sizeof(A))),
          run_(width_ == 0 ? 1 : (8 << width_) / static_cast<int64_t>(sizeof(A))),
          features_(features),
          room_(tiles * tile_size),
          data_(room_ * run_) {}

    int width() const { return width_; }
    int64_t run() const { return run_; }
    A* at(int64_t feature) { return data_.data() + feature * run_; }
    const A* at(int64_t feature) const { return data_.data() + feature * run_; }

    // Inside a parallel region.
    void fill(const KernelTable<A>& table, const InputMatrix& from) {
#pragma omp for schedule(static)
        for (int64_t first = 0; first < room_; first += kFeaturesPerTask) {
            const int64_t features = std::min(kFeaturesPerTask, features_ - first);
            if (features > 0) {
                pack(table, samples_of<T>(from, 0, from.rows, first, features), at(first), run_);
            }
            const int64_t end = std::min(first + kFeaturesPerTask, room_);
            const int64_t known = std::clamp(features_, first, end);
            std::fill(at(known), at(end), A(0));
        }
    }

private:
    int width_;
    int64_t run_;
    int64_t features_;
    int64_t room_;
    Buffer<A> data_;
};

// Worth of threads: the bits of every tile are read, however few they are.
int narrow_threads(int threads, const TileMatrix& m, int64_t samples) {
    const int64_t tiles = m.tile_row_ptr[m.tile_rows];
    return worthwhile_threads(threads,
                              static_cast<double>(samples * m.tile_start[tiles] + 40 * tiles * m.tile_size),
                              static_cast<double>(samples * (m.rows + m.cols)));
}

// Neighbouring tiles whose rows make one list: their features stay in the nearest cache, unless lists would
// become so short that ending them costs more than reaching further does.
int64_t group_tiles(const TileMatrix& m, int64_t run, int64_t element_bytes) {
    const int64_t tiles = m.tile_row_ptr[m.tile_rows];
    const int64_t nnz = std::max<int64_t>(1, m.tile_start[tiles]);
    const int64_t near = kGroupBytes / (run * element_bytes * m.tile_size);
    const int64_t full = kEnoughValues * tiles * m.tile_size / nnz;
    const int64_t most =
        std::min<int64_t>({kNarrowTiles, kNarrowColumns / m.tile_size, (1 << 16) / (run * m.tile_size)});
    return std::clamp<int64_t>(std::max(near, full), 1, most);
}

// Neighbouring rows or columns of tiles for a thread to take at a time: they follow one another in memory.
int64_t share(int64_t count, int threads) { return std::max<int64_t>(1, count / (4 * threads)); }

// Adds narrow_transposed's partial sums to `sums` and clears them.
template <class A>
void fold(A* copies, int64_t size, A* sums) {
    static_assert(kNarrowCopies == 4);
    for (int64_t i = 0; i < size; ++i) {
        sums[i] += (copies[i] + copies[size + i]) + (copies[2 * size + i] + copies[3 * size + i]);
    }
    std::fill(copies, copies + kNarrowCopies * size, A(0));
}

}  // namespace

template <class T>
void narrow_linear(const TileMatrix& m, const AccumulateType<T>* values, const AccumulateType<T>* start,
                   const InputMatrix& x, const OutputMatrix& y, int threads) {
    using A = AccumulateType<T>;
    const KernelTable<A>& table = kernels<A>();
    NarrowPanel<T> panel(x.rows, m.cols, m.tile_cols, m.tile_size);
    const auto product = table.narrow_product[panel.width()];
    const int64_t run = panel.run();
    const int64_t group = group_tiles(m, run, sizeof(A));
    threads = narrow_threads(threads, m, x.rows);
    Buffer<A> scratch(threads * m.tile_size * run);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        panel.fill(table, x);
        A* const sums = scratch.data() + omp_get_thread_num() * m.tile_size * run;
        uint16_t column[kNarrowTiles];
#pragma omp for schedule(static)
        for (int64_t r = 0; r < m.tile_rows; ++r) {
            const int64_t row = r * m.tile_size;
            const int64_t rows = std::min(m.tile_size, m.rows - row);
            const int64_t end = m.tile_row_ptr[r + 1];
            int64_t tile = m.tile_row_ptr[r];
            bool fresh = true;
            do {
                const int64_t first = tile < end ? m.tile_col[tile] / group * group : 0;
                int64_t count = 0;
                while (tile + count < end && m.tile_col[tile + count] < first + group) {
                    const int64_t within = m.tile_col[tile + count] - first;
                    column[count++] = static_cast<uint16_t>(within * m.tile_size * run);
                }
                const A* const features = panel.at(first * m.tile_size);
                product({&m, tile, count, rows, column, features, sums}, values, fresh,
                        start != nullptr ? start + row : nullptr);
                fresh = false;
                tile += count;
            } while (tile < end);
            unpack(table, sums, run, samples_of<T>(y, 0, y.rows, row, rows));
        }
    }
}

template <class T>
void narrow_grad_input(const TileMatrix& m, const AccumulateType<T>* values, const InputMatrix& grad_y,
                       const OutputMatrix& grad_x, int threads) {
    using A = AccumulateType<T>;
    const KernelTable<A>& table = kernels<A>();
    NarrowPanel<T> panel(grad_y.rows, m.rows, m.tile_rows, m.tile_size);
    const auto product = table.narrow_transposed[panel.width()];
    const int64_t run = panel.run();
    const int64_t size = m.tile_size * run;
    threads = narrow_threads(threads, m, grad_y.rows);
    // Neighbouring columns of tiles, whose sums stay near: their tiles follow one another in memory.
    const int64_t fitting = kNearCacheBytes / (kNarrowCopies * size * static_cast<int64_t>(sizeof(A)));
    const int64_t block = std::clamp<int64_t>(fitting, 1, share(m.tile_cols, threads));
    Buffer<A> scratch(threads * block * (kNarrowCopies + 1) * size);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        panel.fill(table, grad_y);
        A* const copies = scratch.data() + omp_get_thread_num() * block * (kNarrowCopies + 1) * size;
        A* const sums = copies + block * kNarrowCopies * size;
#pragma omp for schedule(static)
        for (int64_t begin = 0; begin < m.tile_cols; begin += block) {
            const int64_t end = std::min(begin + block, m.tile_cols);
            std::fill(copies, copies + (end - begin) * kNarrowCopies * size, A(0));
            std::fill(sums, sums + (end - begin) * size, A(0));
            for (int64_t r = 0; r < m.tile_rows; ++r) {
                const int32_t* const row_end = m.tile_col + m.tile_row_ptr[r + 1];
                const int32_t* at = std::lower_bound(m.tile_col + m.tile_row_ptr[r], row_end, begin);
                const int64_t row = r * m.tile_size;
                const int64_t rows = std::min(m.tile_size, m.rows - row);
                for (; at < row_end && *at < end; ++at) {
                    A* const to = copies + (*at - begin) * kNarrowCopies * size;
                    product({&m, at - m.tile_col, 1, rows, nullptr, panel.at(row), to}, values);
                }
                if (row % kRowsTogether + m.tile_size == kRowsTogether || r + 1 == m.tile_rows) {
                    for (int64_t c = 0; c < end - begin; ++c) {
                        fold(copies + c * kNarrowCopies * size, size, sums + c * size);
                    }
                }
            }
            for (int64_t c = begin; c < end; ++c) {
                const int64_t columns = std::min(m.tile_size, m.cols - c * m.tile_size);
                unpack(table, sums + (c - begin) * size, run,
                       samples_of<T>(grad_x, 0, grad_x.rows, c * m.tile_size, columns));
            }
        }
    }
}

template <class T>
void narrow_grad_values(const TileMatrix& m, const InputMatrix& grad_y, const InputMatrix& x,
                        AccumulateType<T>* out, int threads) {
    using A = AccumulateType<T>;
    const KernelTable<A>& table = kernels<A>();
    NarrowPanel<T> x_panel(x.rows, m.cols, m.tile_cols, m.tile_size);
    NarrowPanel<T> y_panel(x.rows, m.rows, m.tile_rows, m.tile_size);
    const auto dot = table.narrow_dot[x_panel.width()];
    threads = narrow_threads(threads, m, x.rows);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        x_panel.fill(table, x);
        y_panel.fill(table, grad_y);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < m.tile_rows; ++r) {
            const int64_t row = r * m.tile_size;
            const int64_t rows = std::min(m.tile_size, m.rows - row);
            const int64_t end = m.tile_row_ptr[r + 1];
            for (int64_t tile = m.tile_row_ptr[r]; tile < end; ++tile) {
                const A* const features = x_panel.at(m.tile_col[tile] * m.tile_size);
                dot({&m, tile, 1, rows, nullptr, features, y_panel.at(row)}, out);
            }
        }
    }
}

#define SPARSEKERN_INSTANTIATE(T)                                                                         \
    template void narrow_linear<T>(const TileMatrix&, const AccumulateType<T>*, const AccumulateType<T>*, \
                                   const InputMatrix&, const OutputMatrix&, int);                         \
    template void narrow_grad_input<T>(const TileMatrix&, const AccumulateType<T>*, const InputMatrix&,   \
                                       const OutputMatrix&, int);                                         \
    template void narrow_grad_values<T>(const TileMatrix&, const InputMatrix&, const InputMatrix&,        \
                                        AccumulateType<T>*, int);
SPARSEKERN_INSTANTIATE(float)
SPARSEKERN_INSTANTIATE(double)
SPARSEKERN_INSTANTIATE(BFloat16)

}  // namespace sparsekern
