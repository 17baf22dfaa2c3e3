#define SPARSEKERN_ISA portable
#define SPARSEKERN_VECTOR_BYTES 16

#include "leaf_two_four_table.inl"
