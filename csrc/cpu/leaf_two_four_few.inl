// A few samples times the rows of a 2:4 weight: the weight is read once, in order, and its values stay in
// whole vectors.

#include "leaf_two_four_pairs.inl"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Pairs of rows that share the loads of features, as far as the registers hold their sums.
template <int M>
constexpr int kFewPairs = SPARSEKERN_VECTOR_BYTES == 64 || M <= 2 ? 2 : 1;

template <class T, int M>
class FewRows {
    using A = AccumulateType<T>;
    static constexpr int kPairs = kFewPairs<M>;
    static constexpr int kRows = 2 * kPairs;

public:
    // Rows from `first` on; where fewer than kRows are left, the last one stands in for those missing.
    FewRows(const TwoFourRows<T>& block, int64_t first) {
        for (int i = 0; i < kRows; ++i) {
            const int64_t row = at_most(first + i, block.rows - 1);
            values_[i] = block.values + row * block.value_stride;
            metadata_[i] = block.metadata + row * block.metadata_stride;
        }
        ahead_ = kRows * block.value_stride;
    }

    void multiply(int64_t columns, const A* x) {
        const int64_t whole = columns / kStep<A>;
        for (int64_t step = 0; step < whole; ++step, x += M * kStep<A>) {
            for (int i = 0; i < kRows; ++i) {
                __builtin_prefetch(values_[i] + step * kLanes<A> + ahead_, 0, 2);
            }
            add_step(step, kStepBytes<A>, x, [](const T* from) { return load_as(from); });
        }
        const int64_t rest = columns % kStep<A>;
        if (rest == 0) return;
        add_step(whole, (rest + 7) / 8, x, [&](const T* from) { return load_range_as(from, 0, rest / 2); });
    }

    // Adds the sums of the first `rows` rows.
    void finish(A* sums, int64_t pitch, int64_t rows) const {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
            for (int p = 0; p < kPairs; ++p) {
                // Of each four lanes, the first two are those of one row.
                A four[4] = {};
                FourSums<A, SPARSEKERN_VECTOR_BYTES>::add(sum_[p][m], four);
                A* const to = sums + m * pitch + 2 * p;
                if (2 * p < rows) to[0] += four[0] + four[1];
                if (2 * p + 1 < rows) to[1] += four[2] + four[3];
            }
        }
    }

private:
    template <class Load>
    void add_step(int64_t step, int64_t bytes, const A* x, const Load& load_values) {
        EvenOdd<Vec<A>> values[kPairs];
        PickIndex<A> index[kPairs];
#pragma GCC unroll 2
        for (int p = 0; p < kPairs; ++p) {
            values[p] = swap_pairs(load_values(values_[2 * p] + step * kLanes<A>),
                                   load_values(values_[2 * p + 1] + step * kLanes<A>));
            index[p] = pick_index<A>(metadata_[2 * p] + step * kStepBytes<A>,
                                     metadata_[2 * p + 1] + step * kStepBytes<A>, bytes);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vec<A> even = load<A>(x + m * kStep<A>), odd = load<A>(x + m * kStep<A> + kLanes<A>);
#pragma GCC unroll 2
            for (int p = 0; p < kPairs; ++p) {
                sum_[p][m] += values[p].even * pick(even, index[p].even);
                sum_[p][m] += values[p].odd * pick(odd, index[p].odd);
            }
        }
    }

    const T* values_[kRows];
    const unsigned char* metadata_[kRows];
    int64_t ahead_;
    Vec<A> sum_[kPairs][M] = {};
};

template <class T, int M>
void few_product(const FewWork<T>& given) {
    constexpr int kRows = 2 * kFewPairs<M>;
    const FewWork<T> work = given;
    for (int64_t r = 0; r < work.block.rows; r += kRows) {
        FewRows<T, M> rows(work.block, r);
        rows.multiply(work.block.columns, work.x);
        rows.finish(work.sums + r, work.pitch, work.block.rows - r);
    }
}

template <class T, int M>
void set_few(TwoFourKernels<T>& table) {
    table.few[M] = few_product<T, M>;
    if constexpr (M < kFewSamples) set_few<T, M + 1>(table);
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
