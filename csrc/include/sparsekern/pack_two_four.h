// Packing 2:4 weights on the CPU: choosing what is kept, gathering and unpacking with what is chosen, and the
// layout that CUTLASS's kernels read. two_four.h defines the layout of values and metadata.
//
// Everything is contiguous. All functions check the sizes that they are handed and throw
// std::invalid_argument; results have the same bits for any number of threads.
#pragma once

#include <cstdint>

#include "sparsekern/linear.h"
#include "sparsekern/two_four.h"

namespace sparsekern {

// A matrix of `rows` by `columns`, which groups or tiles cut evenly.
struct TwoFourShape {
    int64_t rows;
    int64_t columns;
};

// A packing: values (rows, columns / 2) and metadata (rows, metadata_bytes(columns)), with their lengths.
template <class Values, class Byte>
struct TwoFourPacking {
    Values values;
    Byte* metadata = nullptr;
    int64_t metadata_count = 0;
};
using InputPacking = TwoFourPacking<InputValues, const unsigned char>;
using OutputPacking = TwoFourPacking<OutputValues, unsigned char>;

// Packs the two largest magnitudes of each group, the lowest columns of equal ones. Throws
// std::invalid_argument that names the first weight that is infinite or NaN.
void pack_two_four(WeightType type, TwoFourShape shape, InputValues weight, OutputPacking packed,
                   int threads);

// The same with one of the 90 masks for each tile of four by four: the one with the largest sum of magnitudes
// (see select_tile). `transposed`, unless null, is the packing of the transpose.
void pack_transposable(WeightType type, TwoFourShape shape, InputValues weight, OutputPacking packed,
                       const OutputPacking* transposed, int threads);

// The values of another matrix at the places that the metadata names. Elements of 1, 2, 4 or 8 bytes are
// copied bit for bit.
void gather_two_four(int64_t element_size, TwoFourShape shape, InputValues dense,
                     const unsigned char* metadata, int64_t metadata_count, OutputValues values, int threads);

// The matrix that a packing is of: its values in their places, and 0 elsewhere.
void unpack_two_four(int64_t element_size, TwoFourShape shape, InputPacking packed, OutputValues dense,
                     int threads);

// Throws std::invalid_argument that names the first group whose two columns do not ascend, or the row whose
// last nibble belongs to no group and is not 0.
void check_metadata(TwoFourShape shape, const unsigned char* metadata, int64_t metadata_count);

// What CUTLASS's kernels for 2:4 weights read, and back: the same kept values and, of a word for each 16
// weights of two bytes or 32 of one byte, the metadata in their order, which interleaves rows. Where fewer
// than two kept values of a group are nonzero, they have their own choice of two places. Rows are in
// multiples of 32 and columns of 64 for elements of two bytes, of 16 and 128 for those of one byte. Source:
// sparse_semi_structured_from_dense_cutlass in torch/sparse/_semi_structured_conversions.py.
void to_cutlass(int64_t element_size, TwoFourShape shape, InputPacking packed, OutputPacking cutlass,
                int threads);
void from_cutlass(int64_t element_size, TwoFourShape shape, InputPacking cutlass, OutputPacking packed,
                  int threads);

}  // namespace sparsekern
