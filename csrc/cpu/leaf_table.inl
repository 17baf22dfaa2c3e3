// All leaf kernels of one instruction set, written once and compiled for each (see vec.h), and their table.

#include "leaf_lists.inl"
#include "leaf_narrow.inl"
#include "leaf_outer.inl"
#include "leaf_panels.inl"
#include "leaf_pixels.inl"
#include "leaf_tiles.inl"
#include "leaf_transpose.inl"
#include "leaf_two_four.inl"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

template <class A, int V>
void set_widths(KernelTable<A>& table) {
    table.accumulate[V] = accumulate<A, V>;
    table.dot[V] = dot<A, V>;
    table.accumulate_list[V] = accumulate_list<A, V>;
    table.dot_list[V] = dot_list<A, V>;
    if constexpr (V < kMaxVectors) set_widths<A, V + 1>(table);
}

template <class A>
KernelTable<A> make_table() {
    KernelTable<A> table = {};
    table.lanes = kLanes<A>;
    set_widths<A, 1>(table);
    set_narrow<A, 0>(table);
    table.outer_rows = kOuterRows;
    table.outer_columns = kOuterVectors * kLanes<A>;
    table.outer = outer<A>;
    table.pack = pack<A, A>;
    table.unpack = unpack<A, A>;
    table.pack_planes = pack_planes<A, A>;
    table.unpack_pixels = unpack_pixels<A, A>;
    table.transpose_tile = transpose_tile<A>;
    return table;
}

}  // namespace

KernelTable<float> float_table() {
    KernelTable<float> table = make_table<float>();
    table.pack_bfloat16 = pack<BFloat16, float>;
    table.unpack_bfloat16 = unpack<BFloat16, float>;
    table.pack_planes_bfloat16 = pack_planes<BFloat16, float>;
    table.unpack_pixels_bfloat16 = unpack_pixels<BFloat16, float>;
    return table;
}

KernelTable<double> double_table() { return make_table<double>(); }

}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
