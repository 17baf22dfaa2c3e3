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

// Rows and columns of a block, whose sums and panels stay in a core's own cache.
constexpr int64_t kBlockRows = 512;
constexpr int64_t kBlockColumns = 512;

struct Block {
    int64_t row;
    int64_t rows;
    int64_t column;
    int64_t columns;
};

// A matrix cut into blocks of whole units, enough for every thread. Each sum is one block's, so how it is cut
// decides no bits.
class Blocks {
public:
    Blocks(int64_t rows, int64_t columns, int64_t unit, int threads)
        : rows_(rows), columns_(columns), block_rows_(kBlockRows), block_columns_(kBlockColumns) {
        while (size() < 2 * threads && block_rows_ > unit) block_rows_ = std::max(unit, block_rows_ / 2);
        while (size() < 2 * threads && block_columns_ > unit)
            block_columns_ = std::max(unit, block_columns_ / 2);
        block_rows_ = std::min(block_rows_, rows);
        block_columns_ = std::min(block_columns_, columns);
    }

    int64_t size() const { return divide_rounding_up(rows_, block_rows_) * across(); }
    int64_t block_rows() const { return block_rows_; }
    int64_t block_columns() const { return block_columns_; }
    Block at(int64_t index) const {
        const int64_t row = index / across() * block_rows_, column = index % across() * block_columns_;
        return {row, std::min(block_rows_, rows_ - row), column, std::min(block_columns_, columns_ - column)};
    }

private:
    int64_t across() const { return divide_rounding_up(columns_, block_columns_); }

    int64_t rows_;
    int64_t columns_;
    int64_t block_rows_;
    int64_t block_columns_;
};

template <class T>
class KeptGradient {
    using A = AccumulateType<T>;
    static constexpr bool kInPlace = std::is_same<T, A>::value;

public:
    KeptGradient(const TwoFourGradient& grad, const InputMatrix& grad_y, const InputMatrix& x, int threads)
        : grad_(grad),
          grad_y_(grad_y),
          x_(x),
          threads_(threads),
          table_(two_four_kernels<T>()),
          few_(x.rows <= table_.dot_samples),
          shape_(x.rows, kernels<A>().lanes, kMaxVectors),
          blocks_(grad.rows, grad.cols, 64, threads) {}

    void run() const {
        Team team;
#pragma omp parallel num_threads(threads_) if (threads_ > 1)
        {
            auto scratch = team.scratch([&] { return Scratch(*this); });
            if (scratch) {
#pragma omp for schedule(static)
                for (int64_t i = 0; i < blocks_.size(); ++i) compute(blocks_.at(i), *scratch);
            }
        }
        team.rethrow();
    }

private:
    // Samples of a block's rows and columns, and the sums where they have to be rounded.
    struct Scratch {
        Buffer<A> y;
        Buffer<A> x;
        Buffer<A> sums;

        explicit Scratch(const KeptGradient& g)
            : y(g.few_ ? 2 * g.x_.rows * round_to_multiple(g.blocks_.block_rows(), g.table_.dot_rows)
                       : g.shape_.width * g.blocks_.block_rows()),
              x(g.few_ ? g.x_.rows * round_to_multiple(g.blocks_.block_columns(), g.table_.step)
                       : g.shape_.width * g.blocks_.block_columns()),
              sums(kInPlace ? 0 : g.blocks_.block_rows() * g.pitch()) {}
    };

    int64_t pitch() const { return kInPlace ? grad_.cols / 2 : blocks_.block_columns() / 2; }

    void compute(const Block& block, Scratch& scratch) const {
        T* const to = static_cast<T*>(grad_.values.data) + block.row * (grad_.cols / 2) + block.column / 2;
        A* const sums = kInPlace ? reinterpret_cast<A*>(to) : scratch.sums.data();
        few_ ? sum_few(block, scratch, sums) : sum_panels(block, scratch, sums);
        if (kInPlace) return;
        unpack(kernels<A>(), sums, pitch(), Samples<T>{to, 1, grad_.cols / 2, block.columns / 2, block.rows});
    }

    void sum_few(const Block& block, Scratch& scratch, A* sums) const {
        table_.arrange_rows(samples_of<T>(grad_y_, 0, x_.rows, block.row, block.rows), scratch.y.data());
        table_.arrange(samples_of<T>(x_, 0, x_.rows, block.column, block.columns), scratch.x.data());
        table_.dot({metadata_of(block), scratch.x.data(), scratch.y.data(), x_.rows, sums, pitch()});
    }

    // Panel by panel, and in each by columns whose runs the nearest cache holds while all rows read them.
    void sum_panels(const Block& block, Scratch& scratch, A* sums) const {
        const KernelTable<A>& table = kernels<A>();
        const auto dot = table_.dot_panel[shape_.width / table.lanes];
        const int64_t near = kNearCacheBytes / (shape_.width * static_cast<int64_t>(sizeof(A))) / 8 * 8;
        for (int64_t panel = 0; panel < shape_.panels; ++panel) {
            const int64_t first = shape_.begin(panel), count = shape_.count(panel, x_.rows);
            pack(table, samples_of<T>(grad_y_, first, count, block.row, block.rows), scratch.y.data(),
                 shape_.width);
            pack(table, samples_of<T>(x_, first, count, block.column, block.columns), scratch.x.data(),
                 shape_.width);
            for (int64_t column = 0; column < block.columns; column += near) {
                const int64_t columns = std::min(near, block.columns - column);
                dot({metadata_of({block.row, block.rows, block.column + column, columns}),
                     scratch.x.data() + column * shape_.width, scratch.y.data(), sums + column / 2, pitch()},
                    panel == 0);
            }
        }
    }

    TwoFourRows<A> metadata_of(const Block& block) const {
        const int64_t stride = metadata_bytes(grad_.cols);
        const unsigned char* const metadata = grad_.metadata.data + block.row * stride + block.column / 8;
        return {nullptr, metadata, 0, stride, block.rows, block.columns};
    }

    const TwoFourGradient& grad_;
    const InputMatrix& grad_y_;
    const InputMatrix& x_;
    int threads_;
    const TwoFourKernels<T>& table_;
    bool few_;
    PanelShape shape_;
    Blocks blocks_;
};

template <class T>
void grad_values_of(const TwoFourGradient& grad, const InputMatrix& grad_y, const InputMatrix& x,
                    int threads) {
    if (x.rows == 0) {
        std::fill_n(static_cast<T*>(grad.values.data), grad.values.count, T{});
        return;
    }
    const double samples = static_cast<double>(x.rows);
    const double kept = static_cast<double>(grad.rows * grad.cols / 2);
    const int worthwhile = worthwhile_threads(threads, (samples + 1) * kept,
                                              samples * static_cast<double>(grad.rows + grad.cols));
    KeptGradient<T>(grad, grad_y, x, worthwhile).run();
}

}  // namespace

void two_four_linear_grad_values(DType dtype, InputMatrix grad_y, InputMatrix x, const TwoFourGradient& grad,
                                 int threads) {
    const int64_t size = element_bytes(dtype);
    check_threads(threads);
    check_two_four("grad_values", grad, size);
    check_matrix("grad_y", grad_y, grad_y.rows, grad.rows, size);
    check_matrix("x", x, grad_y.rows, grad.cols, size);
    if (grad.values.count == 0) return;
    dispatch(dtype, [&](auto* kind) {
        grad_values_of<std::remove_pointer_t<decltype(kind)>>(grad, grad_y, x, threads);
    });
}

}  // namespace sparsekern
