// The leaf kernels of 2:4 products of one instruction set, and their tables.

#include "leaf_two_four_columns.inl"
#include "leaf_two_four_int8.inl"
#include "leaf_two_four_panel_dot.inl"
#include "leaf_two_four_panels.inl"
#if SPARSEKERN_VECTOR_BYTES > 16
#include "leaf_two_four_dot.inl"
#include "leaf_two_four_few.inl"
#endif
#if SPARSEKERN_VECTOR_BYTES == 64
#include "leaf_two_four_spread.inl"
#endif

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

template <class T, int V>
void set_panels(TwoFourKernels<T>& table) {
    table.accumulate[V] = accumulate_panel<T, V>;
    table.accumulate_lists[V] = accumulate_lists<AccumulateType<T>, V>;
    table.dot_panel[V] = dot_panel<AccumulateType<T>, V>;
    if constexpr (V < kMaxVectors) set_panels<T, V + 1>(table);
}

template <class T>
void set_table(TwoFourKernels<T>& table) {
    using A [[maybe_unused]] = AccumulateType<T>;
    set_panels<T, 1>(table);
    table.list_columns = list_columns<T>;
#if SPARSEKERN_VECTOR_BYTES > 16
    table.step = kStep<A>;
    table.arrange = arrange<T>;
    // Beyond, a panel of one vector takes less time.
    table.few_samples = kLanes<A> / 2;
    set_few<T, 1>(table);
    table.dot_samples = 2 * kLanes<A>;
    table.dot_rows = kDotRows;
    table.arrange_rows = arrange_rows<T>;
    table.dot = dot_block<A>;
#endif
#if SPARSEKERN_VECTOR_BYTES == 64
    set_spread<T, 1>(table);
#endif
}

}  // namespace

void set_two_four(TwoFourKernels<float>& table) { set_table(table); }
void set_two_four(TwoFourKernels<double>& table) { set_table(table); }
void set_two_four(TwoFourKernels<BFloat16>& table) { set_table(table); }
void set_two_four(TwoFourInt8Kernels& table) { set_int8(table); }

}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
