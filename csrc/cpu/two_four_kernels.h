// The leaf kernels of the products of 2:4 weights, which exist once for each instruction set, and their
// table.
//
// Three layouts serve them. A batch of a few samples keeps whole values in vectors, and picks the features
// that these multiply by permutation. A larger one is cut into panels (see kernel_table.h), where each value
// is multiplied with a run of samples. int8 picks as the first does, whatever the batch.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "sparsekern/two_four.h"

namespace sparsekern {

// Neighbouring rows and columns of a packed weight. Columns begin at a multiple of 8.
template <class T>
struct TwoFourRows {
    const T* values;
    const unsigned char* metadata;
    int64_t value_stride;
    int64_t metadata_stride;
    int64_t rows;
    int64_t columns;

    TwoFourRows block(int64_t row, int64_t row_count, int64_t column, int64_t column_count) const {
        return {values + row * value_stride + column / 2,
                metadata + row * metadata_stride + column / 8,
                value_stride,
                metadata_stride,
                row_count,
                column_count};
    }
};

// Rows against one panel: the features of the block's columns lie behind one another from x on, and the rows'
// sums behind one another from y on.
template <class T>
struct TwoFourPanelWork {
    TwoFourRows<T> block;
    const AccumulateType<T>* x;
    AccumulateType<T>* y;
};

// The transpose of a block of kListColumns columns or fewer: for each of its columns a list of the kept
// values, with the rows that they are in. The lists of neighbouring columns begin `capacity` elements apart.
template <class A>
struct ColumnLists {
    A* values;
    uint16_t* rows;
    int32_t* counts;
    int64_t capacity;
};
constexpr int64_t kListColumns = 128;
constexpr int64_t kListSlack = 16;  // capacity beyond a block's rows: what is appended ends in whole vectors

// Lists of `columns` columns against one panel, whose features are rows of the weight.
template <class A>
struct ListsWork {
    ColumnLists<A> lists;
    int64_t columns;
    const A* x;
    A* y;
};

// A few samples, arranged for the kernels: see `arrange`.
constexpr int kFewSamples = 8;

// sums[m * pitch + r] += sum of row r's values times what sample m has in their columns.
template <class T>
struct FewWork {
    TwoFourRows<T> block;
    const AccumulateType<T>* x;
    AccumulateType<T>* sums;
    int64_t pitch;
};

// sums[m * pitch + c] += sum over the rows of their value in column c times y[r * samples + m].
template <class T>
struct SpreadWork {
    TwoFourRows<T> block;
    const AccumulateType<T>* y;
    AccumulateType<T>* sums;
    int64_t pitch;
};
constexpr int64_t kSpreadColumns = 512;  // of a block, at most

// out[r, i] = sum over samples of y[r] times what the sample has in the column of row r's i-th value.
template <class A>
struct DotWork {
    TwoFourRows<A> block;  // only its metadata
    const A* x;            // arranged
    const A* y;            // arranged by `arrange_rows`
    int64_t samples;
    A* out;
    int64_t pitch;
};

// The same for one panel: out[r, i] (+)= the products' sum, and overwritten if `fresh`.
template <class A>
struct PanelDotWork {
    TwoFourRows<A> block;  // only its metadata
    const A* x;
    const A* y;
    A* out;
    int64_t pitch;
};

template <class T>
struct TwoFourKernels {
    using A = AccumulateType<T>;

    // y[r] (+)= sum of values * x[column]; starts from `start[r]` (or 0 when null) if `fresh`.
    void (*accumulate[kMaxVectors + 1])(const TwoFourPanelWork<T>&, bool fresh, const A* start);
    // The lists of a block, and y[c] (+)= sum of values * x[row]; starts from 0 if `fresh`.
    void (*list_columns)(const TwoFourRows<T>&, const ColumnLists<A>&);
    void (*accumulate_lists[kMaxVectors + 1])(const ListsWork<A>&, bool fresh);

    // Samples in steps of `step` columns, the last filled up with zeros: of each step, every sample has its
    // columns behind those of the sample before, in the order in which the kernels of this table pick them.
    int64_t step;
    void (*arrange)(const Samples<const T>&, A* to);
    // The largest batch that is worth `few`, and for each up to it the kernel.
    int64_t few_samples;
    void (*few[kFewSamples + 1])(const FewWork<T>&);
    // Null where lists serve better.
    void (*spread[kFewSamples + 1])(const SpreadWork<T>&);
    // The largest batch that is worth `dot`. It takes dot_rows rows of y at a time: for every sample, each
    // pair of rows as a, a, b, b.
    int64_t dot_samples;
    int64_t dot_rows;
    void (*arrange_rows)(const Samples<const T>&, A* to);
    void (*dot)(const DotWork<A>&);
    void (*dot_panel[kMaxVectors + 1])(const PanelDotWork<A>&, bool fresh);
};

template <class T>
const TwoFourKernels<T>& two_four_kernels();

// sums[m * pitch + r] = sum of row r's values times what sample m has in their columns. Samples are laid out
// by `quantize` in groups of kFewSamples, one behind the other, with the steps of a group's samples side by
// side.
struct Int8Work {
    TwoFourRows<int8_t> block;
    const uint8_t* x;
    int64_t samples;
    int32_t* sums;
    int64_t pitch;
    unsigned char* room;  // for the kernel's own use, aligned for any vector
};

struct TwoFourInt8Kernels {
    int64_t step;  // columns
    int64_t room;  // bytes for each step
    // A sample as bytes, its steps `stride` bytes apart, zeros behind its end. Returns its scale: the one
    // that is given, or the largest magnitude divided by 127. NaN where the sample holds that.
    float (*quantize)(const float* x, int64_t count, const float* given, uint8_t* to, int64_t stride);
    void (*product)(const Int8Work&);
};

const TwoFourInt8Kernels& two_four_int8_kernels();

}  // namespace sparsekern
