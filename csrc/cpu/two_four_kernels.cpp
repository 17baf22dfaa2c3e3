#include "two_four_kernels.h"

#include "sparsekern/isa.h"

namespace sparsekern {

#define SPARSEKERN_TABLES(ISA)                    \
    namespace ISA {                               \
    void set_two_four(TwoFourKernels<float>&);    \
    void set_two_four(TwoFourKernels<double>&);   \
    void set_two_four(TwoFourKernels<BFloat16>&); \
    void set_two_four(TwoFourInt8Kernels&);       \
    }
SPARSEKERN_TABLES(portable)
#if !defined(SPARSEKERN_NO_X86)
SPARSEKERN_TABLES(avx2)
SPARSEKERN_TABLES(avx512)
namespace avx512_vnni {
void set_two_four(TwoFourInt8Kernels&);
}
#endif

namespace {

// A table is made by code of its own instruction set, so only when that is asked for.
template <class Table>
Table made_by(void (*set)(Table&)) {
    Table table = {};
    set(table);
    return table;
}

#if !defined(SPARSEKERN_NO_X86)
void set_best_of_avx512(TwoFourInt8Kernels& table) {
    const bool newer = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
    newer ? avx512_vnni::set_two_four(table) : avx512::set_two_four(table);
}
template <class T>
void set_best_of_avx512(TwoFourKernels<T>& table) {
    avx512::set_two_four(table);
}
#endif

template <class Table>
const Table& table_of(Isa isa) {
#if !defined(SPARSEKERN_NO_X86)
    if (isa == Isa::avx512) {
        static const Table table = made_by<Table>(set_best_of_avx512);
        return table;
    }
    if (isa == Isa::avx2) {
        static const Table table = made_by<Table>(avx2::set_two_four);
        return table;
    }
#endif
    static const Table table = made_by<Table>(portable::set_two_four);
    return table;
}

}  // namespace

template <>
const TwoFourKernels<float>& two_four_kernels<float>() {
    return table_of<TwoFourKernels<float>>(current_isa());
}
template <>
const TwoFourKernels<double>& two_four_kernels<double>() {
    return table_of<TwoFourKernels<double>>(current_isa());
}
template <>
const TwoFourKernels<BFloat16>& two_four_kernels<BFloat16>() {
    return table_of<TwoFourKernels<BFloat16>>(current_isa());
}
const TwoFourInt8Kernels& two_four_int8_kernels() { return table_of<TwoFourInt8Kernels>(current_isa()); }

}  // namespace sparsekern
