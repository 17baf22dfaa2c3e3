#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "panels.h"
#include "sparsekern/two_four_linear.h"
#include "team.h"
#include "tile_schedule.h"
#include "two_four_rows.h"

namespace sparsekern {
namespace {

constexpr int64_t kFeaturesPerTask = 512;

// Rows whose products are summed on their own: one long chain of additions would lose digits.
constexpr int64_t kRowsTogether = 1024;

// Rows whose values stay in a core's own cache.
constexpr int64_t kRowsInTurn = 256;

// A whole multiple of `unit` columns, `most` or fewer, for a thread to take at a time.
int64_t share_of(int64_t columns, int threads, int64_t most, int64_t unit) {
    return std::clamp(round_to_multiple(divide_rounding_up(columns, 4 * threads), unit), unit, most);
}

// A batch of a few samples: the sums of a block of columns stay in the nearest cache, and every row adds to
// them. Where the samples are more than a kernel takes, they are cut in two, and read the same rows in turn.
template <class T>
class SpreadProduct {
    using A = AccumulateType<T>;

public:
    static constexpr int64_t kMostSamples = 2 * kFewSamples;

    SpreadProduct(const TwoFourRows<T>& weight, int64_t samples, int threads)
        : weight_(weight),
          samples_(samples),
          first_half_(samples <= kFewSamples ? samples : (samples + 1) / 2),
          threads_(threads),
          share_(share_of(weight.columns, threads, kSpreadColumns, 64)) {}

    void run(const InputMatrix& grad_y, const OutputMatrix& grad_x) const {
        Buffer<A> y(samples_ * weight_.rows);
        Buffer<A> scratch(threads_ * 2 * samples_ * share_);
#pragma omp parallel num_threads(threads_) if (threads_ > 1)
        {
            pack_samples(grad_y, 0, first_half_, y.data());
            if (first_half_ < samples_) pack_samples(grad_y, first_half_, samples_, y.data());
            A* const totals = scratch.data() + omp_get_thread_num() * 2 * samples_ * share_;
#pragma omp for schedule(static)
            for (int64_t column = 0; column < weight_.columns; column += share_) {
                const int64_t columns = std::min(share_, weight_.columns - column);
                sum_columns(column, columns, y.data(), totals);
                T* const to = static_cast<T*>(grad_x.data) + column;
                unpack(kernels<A>(), totals, share_, Samples<T>{to, 1, grad_x.row_stride, columns, samples_});
            }
        }
    }

private:
    // Inside a parallel region: samples [begin, end) behind those before, feature by feature.
    void pack_samples(const InputMatrix& grad_y, int64_t begin, int64_t end, A* y) const {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < weight_.rows; row += kFeaturesPerTask) {
            const int64_t rows = std::min(kFeaturesPerTask, weight_.rows - row);
            pack(kernels<A>(), samples_of<T>(grad_y, begin, end - begin, row, rows),
                 y + begin * weight_.rows + row * (end - begin), end - begin);
        }
    }

    void sum_columns(int64_t column, int64_t columns, const A* y, A* totals) const {
        A* const sums = totals + samples_ * share_;
        std::fill(totals, totals + samples_ * share_, A(0));
        for (int64_t part = 0; part < weight_.rows; part += kRowsTogether) {
            std::fill(sums, sums + samples_ * share_, A(0));
            const int64_t end = std::min(part + kRowsTogether, weight_.rows);
            for (int64_t row = part; row < end; row += kRowsInTurn) {
                const auto block = weight_.block(row, std::min(kRowsInTurn, end - row), column, columns);
                add(block, row, 0, first_half_, y, sums);
                if (first_half_ < samples_) add(block, row, first_half_, samples_, y, sums);
            }
            for (int64_t i = 0; i < samples_ * share_; ++i) totals[i] += sums[i];
        }
    }

    void add(const TwoFourRows<T>& block, int64_t row, int64_t begin, int64_t end, const A* y,
             A* sums) const {
        two_four_kernels<T>().spread[end - begin](
            {block, y + begin * weight_.rows + row * (end - begin), sums + begin * share_, share_});
    }

    TwoFourRows<T> weight_;
    int64_t samples_;
    int64_t first_half_;
    int threads_;
    int64_t share_;  // columns of a block
};

// Larger batches, some panels at a time. A thread transposes a block of the weight where it uses it, into
// lists, which all panels then read.
template <class T>
class ListedProduct {
    using A = AccumulateType<T>;
    static constexpr int64_t kPanels = 4;  // that one transposition serves, at most
    static constexpr int64_t kRows = 512;

public:
    ListedProduct(const TwoFourRows<T>& weight, const PanelShape& shape, int threads)
        : weight_(weight),
          shape_(shape),
          threads_(threads),
          columns_(share_of(weight.columns, threads, kListColumns, 16)),
          near_rows_(std::min(kRows, kNearCacheBytes / (shape.width * static_cast<int64_t>(sizeof(A))))),
          lists_(divide_rounding_up(kRows, near_rows_)),
          capacity_(near_rows_ + kListSlack),
          accumulate_(two_four_kernels<T>().accumulate_lists[shape.width / kernels<A>().lanes]) {}

    void run(const InputMatrix& grad_y, const OutputMatrix& grad_x) const {
        for (int64_t first = 0; first < shape_.panels; first += kPanels) {
            run_panels(first, std::min(first + kPanels, shape_.panels), grad_y, grad_x);
        }
    }

private:
    // The lists of a block and the sums of its columns for each panel.
    struct Scratch {
        Buffer<A> values;
        Buffer<uint16_t> rows;
        Buffer<int32_t> counts;
        Buffer<A> sums;
    };

    void run_panels(int64_t first, int64_t last, const InputMatrix& grad_y,
                    const OutputMatrix& grad_x) const {
        const KernelTable<A>& table = kernels<A>();
        const int64_t parts = divide_rounding_up(weight_.rows, kFeaturesPerTask);
        Buffer<A> features((last - first) * weight_.rows * shape_.width);
        Team team;
#pragma omp parallel num_threads(threads_) if (threads_ > 1)
        {
            auto scratch = team.scratch([&] {
                const int64_t lists = lists_ * columns_;
                return Scratch{Buffer<A>(lists * capacity_), Buffer<uint16_t>(lists * capacity_),
                               Buffer<int32_t>(lists), Buffer<A>((last - first) * columns_ * shape_.width)};
            });
            if (scratch) {
#pragma omp for schedule(static)
                for (int64_t task = 0; task < (last - first) * parts; ++task) {
                    const int64_t panel = first + task / parts;
                    const int64_t row = task % parts * kFeaturesPerTask;
                    const int64_t rows = std::min(kFeaturesPerTask, weight_.rows - row);
                    pack(table,
                         samples_of<T>(grad_y, shape_.begin(panel), shape_.count(panel, grad_y.rows), row,
                                       rows),
                         features.data() + ((panel - first) * weight_.rows + row) * shape_.width,
                         shape_.width);
                }
#pragma omp for schedule(static)
                for (int64_t column = 0; column < weight_.columns; column += columns_) {
                    const int64_t columns = std::min(columns_, weight_.columns - column);
                    sum_columns(column, columns, last - first, features.data(), *scratch);
                    for (int64_t panel = first; panel < last; ++panel) {
                        unpack(table, scratch->sums.data() + (panel - first) * columns * shape_.width,
                               shape_.width,
                               samples_of<T>(grad_x, shape_.begin(panel), shape_.count(panel, grad_x.rows),
                                             column, columns));
                    }
                }
            }
        }
        team.rethrow();
    }

    void sum_columns(int64_t column, int64_t columns, int64_t panels, const A* features,
                     Scratch& scratch) const {
        const auto list_columns = two_four_kernels<T>().list_columns;
        if (weight_.rows == 0) std::fill_n(scratch.sums.data(), panels * columns * shape_.width, A(0));
        for (int64_t begin = 0; begin < weight_.rows; begin += lists_ * near_rows_) {
            const int64_t end = std::min(begin + lists_ * near_rows_, weight_.rows);
            for (int64_t row = begin; row < end; row += near_rows_) {
                list_columns(weight_.block(row, std::min(near_rows_, end - row), column, columns),
                             lists_at((row - begin) / near_rows_, columns, scratch));
            }
            for (int64_t panel = 0; panel < panels; ++panel) {
                const A* const of_panel = features + panel * weight_.rows * shape_.width;
                A* const sums = scratch.sums.data() + panel * columns * shape_.width;
                for (int64_t row = begin; row < end; row += near_rows_) {
                    accumulate_({lists_at((row - begin) / near_rows_, columns, scratch), columns,
                                 of_panel + row * shape_.width, sums},
                                row == 0);
                }
            }
        }
    }

    ColumnLists<A> lists_at(int64_t index, int64_t columns, Scratch& scratch) const {
        const int64_t first = index * columns;
        return {scratch.values.data() + first * capacity_, scratch.rows.data() + first * capacity_,
                scratch.counts.data() + first, capacity_};
    }

    TwoFourRows<T> weight_;
    PanelShape shape_;
    int threads_;
    int64_t columns_;
    int64_t near_rows_;  // whose features the nearest cache holds: those of one list
    int64_t lists_;      // of each column at a time
    int64_t capacity_;
    void (*accumulate_)(const ListsWork<A>&, bool fresh);
};

template <class T>
void grad_input_of(const TwoFourWeight& weight, const InputMatrix& grad_y, const OutputMatrix& grad_x,
                   int threads) {
    using A = AccumulateType<T>;
    const TwoFourRows<T> rows = rows_of<T>(weight);
    const double samples = static_cast<double>(grad_y.rows);
    const double kept = static_cast<double>(weight.rows * weight.cols / 2);
    const int worthwhile = worthwhile_threads(threads, (samples + 1) * kept,
                                              samples * static_cast<double>(weight.rows + weight.cols));
    if (two_four_kernels<T>().spread[1] != nullptr && grad_y.rows <= SpreadProduct<T>::kMostSamples) {
        return SpreadProduct<T>(rows, grad_y.rows, worthwhile).run(grad_y, grad_x);
    }
    const PanelShape shape(grad_y.rows, kernels<A>().lanes, kMaxVectors);
    ListedProduct<T>(rows, shape, worthwhile).run(grad_y, grad_x);
}

}  // namespace

void two_four_linear_grad_input(DType dtype, const TwoFourWeight& weight, InputMatrix grad_y,
                                OutputMatrix grad_x, int threads) {
    const int64_t size = element_bytes(dtype);
    check_threads(threads);
    check_two_four("values", weight, size);
    check_matrix("grad_y", grad_y, grad_y.rows, weight.rows, size);
    check_matrix("grad_x", grad_x, grad_y.rows, weight.cols, size);
    if (grad_y.rows == 0 || weight.cols == 0) return;
    dispatch(dtype, [&](auto* kind) {
        grad_input_of<std::remove_pointer_t<decltype(kind)>>(weight, grad_y, grad_x, threads);
    });
}

}  // namespace sparsekern
