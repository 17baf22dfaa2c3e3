// What a pattern says about its values: where they lie in the dense weight, and moving them between the two.
//
// Dense buffers are contiguous in the weight's own shape: (rows, cin) or (rows, cin, kh, kw). Values are
// copied bit for bit, so every dtype of 1, 2, 4 or 8 bytes works. Every function checks the element counts it
// is handed and throws std::invalid_argument; the result never depends on the number of threads.
#pragma once

#include <cstdint>

#include "sparsekern/pattern.h"

namespace sparsekern {

// mask[position] = 1 where active, else 0.
void to_mask(const PatternView& pattern, unsigned char* mask, int64_t elements, int threads);

// values[i] = dense[position of value i].
void pack(const PatternView& pattern, const void* dense, int64_t dense_elements, void* values,
          int64_t value_elements, int64_t element_size, int threads);

// dense[position of value i] = values[i], and 0 everywhere else.
void unpack(const PatternView& pattern, const void* values, int64_t value_elements, void* dense,
            int64_t dense_elements, int64_t element_size, int threads);

// to_values[position] = from_values[position] where both patterns are active, 0 where only `to` is. The
// patterns must agree in shape and tile size.
void transfer(const PatternView& from, const void* from_values, int64_t from_elements, const PatternView& to,
              void* to_values, int64_t to_elements, int64_t element_size, int threads);

// One vector of values of two patterns, of elements of 1, 2, 4 or 8 bytes.
struct Transfer {
    const void* from_values;
    int64_t from_elements;
    void* to_values;
    int64_t to_elements;
    int64_t element_size;
};

// The same for several vectors; where each value comes from is found once for all of them.
void transfer_all(const PatternView& from, const PatternView& to, const Transfer* vectors, int64_t count,
                  int threads);

// counts[n] = active positions of matrix row n; `elements` must be rows.
void fan_in(const PatternView& pattern, int64_t* counts, int64_t elements, int threads);

// counts[g * cin + c] = active positions that read input channel c of group g, summed over the kernel
// positions; `elements` must be groups * cin. Group g owns the rows [g * rows / groups, (g + 1) * rows /
// groups).
void fan_out(const PatternView& pattern, int64_t groups, int64_t* counts, int64_t elements, int threads);

// out[i] = matrix row / matrix column of value i; `elements` must be nnz.
void value_rows(const PatternView& pattern, int64_t* out, int64_t elements, int threads);
void value_cols(const PatternView& pattern, int64_t* out, int64_t elements, int threads);

// A 64-bit hash of the packed words, for telling patterns apart; not cryptographic.
uint64_t checksum(const int32_t* data, int64_t words);

}  // namespace sparsekern
