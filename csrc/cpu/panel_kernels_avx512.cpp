#define SPARSEKERN_ISA avx512
#define SPARSEKERN_VECTOR_BYTES 64

#include <immintrin.h>

#include "kernel_table.h"
#include "vec.h"
#include "panel_kernels.inl"
