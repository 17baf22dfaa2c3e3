#include "sparsekern/grow_candidates.h"

#include <type_traits>

#include "candidate_passes.h"
#include "panels.h"

namespace sparsekern {
namespace {

// The batch of a linear layer. Panels of rows and columns are packed like panels of samples, which take turns
// with features here.
template <class T>
class LinearSource {
public:
    using Sum = AccumulateType<T>;

    LinearSource(InputMatrix grad_y, InputMatrix x) : grad_y_(grad_y), x_(x) {}

    int64_t samples() const { return x_.rows; }
    void pack_rows(const KernelTable<Sum>& table, int64_t first, int64_t samples, int64_t row, int64_t rows,
                   Sum* to) const {
        pack_panel(table, grad_y_, first, samples, row, rows, to, table.outer_rows);
    }
    void pack_columns(const KernelTable<Sum>& table, int64_t, int64_t first, int64_t samples, int64_t column,
                      int64_t columns, Sum* to) const {
        pack_panel(table, x_, first, samples, column, columns, to, table.outer_columns);
    }

private:
    static void pack_panel(const KernelTable<Sum>& table, const InputMatrix& matrix, int64_t first,
                           int64_t samples, int64_t feature, int64_t features, Sum* to, int64_t width) {
        const T* data =
            static_cast<const T*>(matrix.data) + first * matrix.row_stride + feature * matrix.col_stride;
        pack(table, Samples<const T>{data, matrix.col_stride, matrix.row_stride, features, samples}, to,
             width);
    }

    InputMatrix grad_y_;
    InputMatrix x_;
};

}  // namespace

std::unique_ptr<GrowCandidates> grow_candidates(DType dtype, const PatternView& pattern, InputMatrix grad_y,
                                                InputMatrix x, int threads) {
    const int64_t size = element_bytes(dtype);
    check_threads(threads);
    check_matrix("grad_y", grad_y, grad_y.rows, pattern.rows, size);
    check_matrix("x", x, grad_y.rows, pattern.cols, size);
    // A sum of so many products, half as costly as sparse ones, and a look at it.
    const auto positions = static_cast<double>(pattern.rows * pattern.cols);
    threads = worthwhile_threads(threads, positions * static_cast<double>(x.rows) / 2, positions);
    std::unique_ptr<GrowCandidates> passes;
    dispatch(dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        passes = std::make_unique<CandidatePasses<LinearSource<T>>>(pattern, LinearSource<T>(grad_y, x), 1,
                                                                    threads);
    });
    return passes;
}

}  // namespace sparsekern
