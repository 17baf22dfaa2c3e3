#define SPARSEKERN_ISA avx2
#define SPARSEKERN_VECTOR_BYTES 32

#include "kernel_table.h"
#include "leaf_table.inl"
#include "vec.h"
