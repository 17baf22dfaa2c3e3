// The kernels that gain from AVX-512 VBMI2 (Ice Lake and Zen 4 onwards), which turns a word's bits into the
// list of their positions at once.
#define SPARSEKERN_ISA avx512_vbmi2
#define SPARSEKERN_VECTOR_BYTES 64

// GCC 12 takes the undefined operands that its own intrinsics start from for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "leaf_narrow.inl"

namespace sparsekern {
namespace avx512_vbmi2 {

void improve(KernelTable<float>& table) { set_narrow<float, 0>(table); }
void improve(KernelTable<double>& table) { set_narrow<double, 0>(table); }

}  // namespace avx512_vbmi2
}  // namespace sparsekern
