#define SPARSEKERN_ISA portable
#define SPARSEKERN_VECTOR_BYTES 16

#include "kernel_table.h"
#include "leaf_table.inl"
#include "vec.h"
