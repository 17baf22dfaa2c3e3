#include "sparsekern/two_four_linear.h"

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "compute_values.h"
#include "panel_product.h"
#include "two_four_panels.h"
#include "two_four_rows.h"

namespace sparsekern {
namespace {

// Rows whose sums are written together.
constexpr int64_t kFewRows = 32;
constexpr int64_t kFeaturesPerTask = 1024;

// A batch of a few samples: whole rows against features in a core's own cache, so that memory is read in
// order.
template <class T>
void few_linear(const TwoFourRows<T>& weight, const AccumulateType<T>* start, const InputMatrix& x,
                const OutputMatrix& y, int threads) {
    using A = AccumulateType<T>;
    const TwoFourKernels<T>& table = two_four_kernels<T>();
    const KernelTable<A>& panels = kernels<A>();
    const int64_t samples = x.rows;
    const auto product = table.few[samples];
    const int64_t fitting = kPrivateCacheBytes / 2 / (samples * static_cast<int64_t>(sizeof(A)));
    const int64_t near = fitting / table.step * table.step;
    Buffer<A> features(samples * round_to_multiple(weight.columns, table.step));
    Buffer<A> scratch(threads * samples * kFewRows);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t first = 0; first < weight.columns; first += kFeaturesPerTask) {
            const int64_t count = std::min(kFeaturesPerTask, weight.columns - first);
            table.arrange(samples_of<T>(x, 0, samples, first, count), features.data() + first * samples);
        }
        A* const sums = scratch.data() + omp_get_thread_num() * samples * kFewRows;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < weight.rows; row += kFewRows) {
            const int64_t rows = std::min(kFewRows, weight.rows - row);
            for (int64_t m = 0; m < samples; ++m) {
                A* const to = sums + m * kFewRows;
                if (start != nullptr) {
                    std::copy(start + row, start + row + rows, to);
                } else {
                    std::fill(to, to + rows, A(0));
                }
            }
            for (int64_t column = 0; column < weight.columns; column += near) {
                const int64_t columns = std::min(near, weight.columns - column);
                product({weight.block(row, rows, column, columns), features.data() + column * samples, sums,
                         kFewRows});
            }
            T* const to = static_cast<T*>(y.data) + row;
            unpack(panels, sums, kFewRows, Samples<T>{to, 1, y.row_stride, rows, samples});
        }
    }
}

template <class T>
void linear_of(const TwoFourWeight& weight, const InputMatrix& x, const InputValues& bias,
               const OutputMatrix& y, int threads) {
    using A = AccumulateType<T>;
    const ComputeValues<T> start(bias.data, bias.data != nullptr ? bias.count : 0);
    const TwoFourRows<T> rows = rows_of<T>(weight);
    const double samples = static_cast<double>(x.rows);
    const double kept = static_cast<double>(weight.rows * weight.cols / 2);
    const int worthwhile =
        worthwhile_threads(threads, (samples + 1) * kept, samples * static_cast<double>(x.cols + y.cols));
    if (x.rows <= two_four_kernels<T>().few_samples) {
        return few_linear<T>(rows, start.data(), x, y, worthwhile);
    }
    const PanelShape shape(x.rows, kernels<A>().lanes, kMaxVectors);
    const TwoFourPanels<T> panels(rows, start.data(), shape);
    PanelProduct<T, TwoFourPanels<T>>(panels, shape, worthwhile).run(x, y);
}

}  // namespace

void two_four_linear(DType dtype, const TwoFourWeight& weight, InputMatrix x, InputValues bias,
                     OutputMatrix y, int threads) {
    const int64_t size = element_bytes(dtype);
    check_threads(threads);
    check_two_four("values", weight, size);
    check_matrix("x", x, x.rows, weight.cols, size);
    check_matrix("y", y, x.rows, weight.rows, size);
    if (bias.data != nullptr) check_values("bias", bias, weight.rows, size);
    if (x.rows == 0 || weight.rows == 0) return;
    dispatch(dtype, [&](auto* kind) {
        linear_of<std::remove_pointer_t<decltype(kind)>>(weight, x, bias, y, threads);
    });
}

}  // namespace sparsekern
