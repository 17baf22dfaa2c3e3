#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "dense_gradient.h"
#include "panels.h"
#include "sparsekern/two_four_linear.h"
#include "team.h"
#include "two_four_rows.h"

namespace sparsekern {
namespace {

// Sums are added up in parts of so many samples, whose columns the nearest cache holds. So this decides their
// last bits; how the matrix is cut into blocks does not.
constexpr int64_t kPartSamples = 128;

template <class T>
class KeptGradient {
    using A = AccumulateType<T>;
    static constexpr bool kInPlace = std::is_same<T, A>::value;

public:
    KeptGradient(const TwoFourGradient& grad, const InputMatrix& grad_y, const InputMatrix& x)
        : grad_(grad), grad_y_(grad_y), x_(x), table_(two_four_kernels<T>()) {}

    void run(int threads) const {
        const BlockGrid grid(1, grad_.rows, grad_.cols, table_.dot_rows, table_.step, 2 * threads);
        Team team;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            auto scratch = team.scratch([&] { return Scratch(grid, std::min(x_.rows, kPartSamples)); });
            if (scratch) {
#pragma omp for schedule(static)
                for (int64_t i = 0; i < grid.size(); ++i) compute(grid.block(i), *scratch);
            }
        }
        team.rethrow();
    }

private:
    struct Scratch {
        Buffer<A> y;
        Buffer<A> x;
        Buffer<A> sums;  // where they have to be rounded
        int64_t pitch;

        Scratch(const BlockGrid& grid, int64_t samples)
            : y(2 * grid.block_rows() * samples),
              x(grid.block_columns() * samples),
              sums(kInPlace ? 0 : grid.block_rows() * grid.block_columns() / 2),
              pitch(grid.block_columns() / 2) {}
    };

    void compute(const MatrixBlock& block, Scratch& scratch) const {
        T* const to = static_cast<T*>(grad_.values.data) + block.row * (grad_.cols / 2) + block.column / 2;
        DotWork<A> work = {metadata_of(block), scratch.x.data(), scratch.y.data(), 0, nullptr, 0};
        work.out = kInPlace ? reinterpret_cast<A*>(to) : scratch.sums.data();
        work.pitch = kInPlace ? grad_.cols / 2 : scratch.pitch;
        for (int64_t first = 0; first < x_.rows; first += kPartSamples) {
            work.samples = std::min(kPartSamples, x_.rows - first);
            table_.arrange_rows(samples_of<T>(grad_y_, first, work.samples, block.row, block.rows),
                                scratch.y.data());
            table_.arrange(samples_of<T>(x_, first, work.samples, block.column, block.columns),
                           scratch.x.data());
            table_.dot(work, first == 0);
        }
        if (kInPlace) return;
        unpack(kernels<A>(), scratch.sums.data(), scratch.pitch,
               Samples<T>{to, 1, grad_.cols / 2, block.columns / 2, block.rows});
    }

    TwoFourRows<A> metadata_of(const MatrixBlock& block) const {
        const int64_t stride = metadata_bytes(grad_.cols);
        const unsigned char* const metadata = grad_.metadata.data + block.row * stride + block.column / 8;
        return {nullptr, metadata, 0, stride, block.rows, block.columns};
    }

    const TwoFourGradient& grad_;
    const InputMatrix& grad_y_;
    const InputMatrix& x_;
    const TwoFourKernels<T>& table_;
};

template <class T>
void grad_values_of(const TwoFourGradient& grad, const InputMatrix& grad_y, const InputMatrix& x,
                    int threads) {
    if (x.rows == 0) {
        std::fill_n(static_cast<T*>(grad.values.data), grad.values.count, T{});
        return;
    }
    const int64_t kept = grad.rows * grad.cols / 2;
    KeptGradient<T>(grad, grad_y, x)
        .run(worthwhile_threads(threads, (x.rows + 1) * kept, x.rows * (grad.rows + grad.cols)));
}

}  // namespace

void two_four_linear_grad_values(DType dtype, InputMatrix grad_y, InputMatrix x, const TwoFourGradient& grad,
                                 int threads) {
    check_threads(threads);
    check_two_four("grad_values", grad);
    check_matrix("grad_y", grad_y, grad_y.rows, grad.rows);
    check_matrix("x", x, grad_y.rows, grad.cols);
    if (grad.values.count == 0) return;
    dispatch(dtype, [&](auto* kind) {
        grad_values_of<std::remove_pointer_t<decltype(kind)>>(grad, grad_y, x, threads);
    });
}

}  // namespace sparsekern
