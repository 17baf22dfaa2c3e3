// y = x M^T for a batch, panel by panel, whatever the matrix M is made of.
#pragma once

#include <algorithm>
#include <cstdint>

#include "buffer.h"
#include "kernel_table.h"
#include "panels.h"
#include "team.h"
#include "tile_schedule.h"

namespace sparsekern {

// The least part of a matrix that a thread takes: whole vectors of y.
constexpr int64_t kLeastRows = 16;

// y = x M^T + start, with samples in panels of `shape`. `Rows` is M: it has rows(), cols() and unit(), the
// rows that are best kept together, and sum(features, begin, end, sums) writes the sums of rows [begin, end)
// for one panel of features.
template <class T, class Rows>
class PanelProduct {
    using A = AccumulateType<T>;

public:
    PanelProduct(const Rows& matrix, const PanelShape& shape, int threads)
        : matrix_(matrix), shape_(shape), threads_(threads), table_(kernels<A>()) {}

    void run(const InputMatrix& x, const OutputMatrix& y) const {
        if (x.rows == 0 || matrix_.rows() == 0) return;
        if (shape_.panels >= 2 * threads_ || shape_.panels % threads_ == 0) {
            run_panels(x, y);
        } else {
            run_rows(x, y);
        }
    }

private:
    // Panels for every thread: each is packed, used and unpacked where it is in a core's own cache.
    void run_panels(const InputMatrix& x, const OutputMatrix& y) const {
        const int64_t chunk = rows_together();
        Team team;
#pragma omp parallel num_threads(threads_) if (shape_.panels > 1)
        {
            auto scratch = team.scratch([&] { return Buffer<A>(scratch_size(chunk)); });
            if (scratch) {
#pragma omp for schedule(static)
                for (int64_t panel = 0; panel < shape_.panels; ++panel) {
                    pack_panel(x, panel, scratch->data());
                    for (int64_t row = 0; row < matrix_.rows(); row += chunk) {
                        multiply(panel, *scratch, row, std::min(row + chunk, matrix_.rows()), y);
                    }
                }
            }
        }
        team.rethrow();
    }

    // Few panels: their rows are shared out. Each thread packs the panels that it needs for itself: to read
    // what another core has written costs more than packing it again.
    void run_rows(const InputMatrix& x, const OutputMatrix& y) const {
        const int64_t panels = shape_.panels;
        const int64_t even = (matrix_.rows() * panels + 2 * threads_ - 1) / (2 * threads_);
        const int64_t unit = even < 2 * matrix_.unit() ? kLeastRows : matrix_.unit();
        const int64_t chunk = std::min(rows_together(), (even + unit - 1) / unit * unit);
        const int64_t chunks = (matrix_.rows() + chunk - 1) / chunk;
        Team team;
#pragma omp parallel num_threads(threads_) if (panels * chunks > 1)
        {
            auto scratch = team.scratch([&] { return Buffer<A>(scratch_size(chunk)); });
            if (scratch) {
                int64_t packed = -1;
#pragma omp for schedule(static)
                for (int64_t task = 0; task < panels * chunks; ++task) {
                    const int64_t panel = task / chunks;
                    if (panel != packed) pack_panel(x, panel, scratch->data());
                    packed = panel;
                    const int64_t row = task % chunks * chunk;
                    multiply(panel, *scratch, row, std::min(row + chunk, matrix_.rows()), y);
                }
            }
        }
        team.rethrow();
    }

    // One panel of features and the sums of `rows` rows.
    int64_t scratch_size(int64_t rows) const { return (matrix_.cols() + rows) * shape_.width; }

    void pack_panel(const InputMatrix& x, int64_t panel, A* features) const {
        pack(table_, samples_of<T>(x, shape_.begin(panel), shape_.count(panel, x.rows), 0, matrix_.cols()),
             features, shape_.width);
    }

    // Whole units of rows whose sums stay in a core's own cache, as a number of rows.
    int64_t rows_together() const {
        const int64_t unit = matrix_.unit();
        const int64_t row_bytes = unit * shape_.width * static_cast<int64_t>(sizeof(A));
        const int64_t units = (matrix_.rows() + unit - 1) / unit;
        return std::clamp<int64_t>(kPrivateCacheBytes / 4 / row_bytes, 1, units) * unit;
    }

    // Rows [begin, end) for the panel in `scratch`, into y.
    void multiply(int64_t panel, Buffer<A>& scratch, int64_t begin, int64_t end,
                  const OutputMatrix& y) const {
        A* const sums = scratch.data() + matrix_.cols() * shape_.width;
        matrix_.sum(scratch.data(), begin, end, sums);
        unpack(table_, sums, shape_.width,
               samples_of<T>(y, shape_.begin(panel), shape_.count(panel, y.rows), begin, end - begin));
    }

    const Rows& matrix_;
    PanelShape shape_;
    int threads_;
    const KernelTable<A>& table_;
};

}  // namespace sparsekern
