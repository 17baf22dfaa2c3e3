#define SPARSEKERN_ISA avx2
#define SPARSEKERN_VECTOR_BYTES 32

#include <immintrin.h>

#include "leaf_two_four_table.inl"
