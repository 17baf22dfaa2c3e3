// Leaf kernels for batches of a few samples, whose panels are one or two vectors wide or less.
//
// There the walk over the bits costs more than the arithmetic, and a loop per row of a tile would end in a
// wrong guess every few values. So the bits become lists of positions first, without branches, and one loop
// runs over a list: over a row of several tiles, or over a whole tile where sums need not stay in registers.

#include "kernel_table.h"
#include "nonzero_list.inl"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// W elements of a panel: whole vectors, part of one, or a single element.
template <class A, int W>
struct Run {
    static constexpr int kAllBytes = W * static_cast<int>(sizeof(A));
    static constexpr int kPartBytes = kAllBytes < kBytes ? kAllBytes : static_cast<int>(kBytes);
    static constexpr int kLanes = kPartBytes / static_cast<int>(sizeof(A));
    static constexpr int kParts = W / kLanes;
    typedef A Part __attribute__((vector_size(kPartBytes)));
};
template <class A>
struct Run<A, 1> {
    static constexpr int kLanes = 1;
    static constexpr int kParts = 1;
    using Part = A;
};

template <class Part, class A>
inline Part load_part(const A* from) {
    Part part;
    std::memcpy(&part, from, sizeof(part));
    return part;
}

// y += the products of the first `count` values of a list. Several sums at once: a single one would wait for
// itself at each addition.
template <class A, int W>
inline void add_list(const NonzeroList<A>& list, int64_t count, const A* features, A* y) {
    using R = Run<A, W>;
    using Part = typename R::Part;
    constexpr int kChains = R::kParts < 4 ? 4 / R::kParts : 1;
    Part sum[kChains][R::kParts] = {};
    const auto add = [&](Part(&to)[R::kParts], int64_t k) {
        const A* x = features + list.offset[k];
        const Part weight = list.value[k] - Part{};
#pragma GCC unroll 8
        for (int j = 0; j < R::kParts; ++j) to[j] += weight * load_part<Part>(x + j * R::kLanes);
    };
    int64_t k = 0;
    for (; k + kChains <= count; k += kChains) {
#pragma GCC unroll 4
        for (int q = 0; q < kChains; ++q) add(sum[q], k + q);
    }
    for (; k < count; ++k) add(sum[0], k);
#pragma GCC unroll 8
    for (int j = 0; j < R::kParts; ++j) {
        Part total = sum[0][j];
        if constexpr (kChains == 2) total += sum[1][j];
        if constexpr (kChains == 4) total = (total + sum[1][j]) + (sum[2][j] + sum[3][j]);
        total += load_part<Part>(y + j * R::kLanes);
        std::memcpy(y + j * R::kLanes, &total, sizeof(total));
    }
}

// y[r] (+)= sum over active c of values * x[c], for some neighbouring tiles of one row.
template <class A, int W>
void narrow_product(const NarrowWork<A>& given, const A* values, bool fresh, const A* start) {
    const NarrowWork<A> work = given;
    const RowWords words(*work.matrix, work.first_tile);
    const A* const end = all_values_end(*work.matrix, values);
    const A* value[kNarrowTiles];
    for (int64_t i = 0; i < work.tile_count; ++i) {
        value[i] = values + work.matrix->tile_start[work.first_tile + i];
    }
    // Too many places are read at once for the hardware to see where the next tiles begin.
    const int64_t ahead =
        work.matrix->tile_start[work.first_tile + work.tile_count] - work.matrix->tile_start[work.first_tile];
    NonzeroList<A> list;
    for (int64_t r = 0; r < work.rows; ++r) {
        int64_t count = 0;
        for (int64_t i = 0; i < work.tile_count; ++i) {
            words.prefetch(i + work.tile_count, r);
            __builtin_prefetch(value[i] + ahead, 0, 2);
            const uint64_t bits = words(i, r);
            const int64_t added = append_positions<W>(bits, work.column[i], list.offset + count);
            copy_values(list.value + count, value[i], added, end);
            value[i] += added;
            count += added;
        }
        A* y = work.y + r * W;
        if (fresh) {
            for (int j = 0; j < W; ++j) y[j] = start != nullptr ? start[r] : A(0);
        }
        add_list<A, W>(list, count, work.x, y);
    }
}

// The sums for the columns of one tile, as kNarrowCopies partial sums: row r's products go to copy
// r % kNarrowCopies, for an addition that follows one to the same place has to wait for it.
template <class A, int W>
void narrow_transposed(const NarrowWork<A>& given, const A* values) {
    using R = Run<A, W>;
    using Part = typename R::Part;
    const NarrowWork<A> work = given;
    TileList list;
    const int64_t count = list.template fill<W, kNarrowCopies>(*work.matrix, work.first_tile, work.rows);
    const A* value = values + work.matrix->tile_start[work.first_tile];
    for (int64_t k = 0; k < count; ++k) {
        A* y = work.y + list.column[k];
        const A* x = work.x + list.row[k];
        const Part weight = value[k] - Part{};
#pragma GCC unroll 8
        for (int j = 0; j < R::kParts; ++j) {
            const Part sum = load_part<Part>(y + j * R::kLanes) + weight * load_part<Part>(x + j * R::kLanes);
            std::memcpy(y + j * R::kLanes, &sum, sizeof(sum));
        }
    }
}

// The same for one sample: the products are worked out a vector at a time.
template <class A>
void single_transposed(const NarrowWork<A>& given, const A* values) {
    const NarrowWork<A> work = given;
    const TileMatrix& m = *work.matrix;
    const RowWords words(m, work.first_tile);
    const A* const end = all_values_end(m, values);
    const A* value = values + m.tile_start[work.first_tile];
    NonzeroList<A> list;
    int64_t count = 0;
    for (int64_t r = 0; r < work.rows; ++r) {
        const auto copy = static_cast<uint16_t>(r % kNarrowCopies * m.tile_size);
        const int64_t added = append_positions<1>(words(0, r), copy, list.offset + count);
        copy_scaled(list.value + count, value, added, end, work.x[r]);
        value += added;
        count += added;
    }
    for (int64_t k = 0; k < count; ++k) work.y[list.offset[k]] += list.value[k];
}

// One product's sum over the samples, of the whole panel's width.
template <class A, int W>
inline typename Run<A, W>::Part dot_parts(const A* x, const A* y) {
    using R = Run<A, W>;
    using Part = typename R::Part;
    Part sum = load_part<Part>(x) * load_part<Part>(y);
#pragma GCC unroll 8
    for (int j = 1; j < R::kParts; ++j) {
        sum += load_part<Part>(x + j * R::kLanes) * load_part<Part>(y + j * R::kLanes);
    }
    return sum;
}

// Lane i of the result is the sum of the lanes of parts[i].
template <class Part, int N>
inline Part sum_each(Part (&parts)[N]) {
#pragma GCC unroll 4
    for (int half = N / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) {
            parts[i] = interleave_low(parts[i], parts[i + half]) + interleave_high(parts[i], parts[i + half]);
        }
    }
    return parts[0];
}

// values_gradient[r, c] = sum over the samples of y[r] * x[c], for one tile.
template <class A, int W>
void narrow_dot(const NarrowWork<A>& given, A* values_gradient) {
    using R = Run<A, W>;
    const NarrowWork<A> work = given;
    TileList list;
    const int64_t count = list.template fill<W, 1>(*work.matrix, work.first_tile, work.rows);
    A* out = values_gradient + work.matrix->tile_start[work.first_tile];
    if constexpr (W == 1) {
        for (int64_t k = 0; k < count; ++k) out[k] = work.x[list.column[k]] * work.y[list.row[k]];
    } else {
        list.pad(count);
        for (int64_t k = 0; k < count; k += R::kLanes) {
            typename R::Part dots[R::kLanes];
#pragma GCC unroll 16
            for (int q = 0; q < R::kLanes; ++q) {
                dots[q] = dot_parts<A, W>(work.x + list.column[k + q], work.y + list.row[k + q]);
            }
            const typename R::Part sums = sum_each(dots);
            const int64_t left = count - k < R::kLanes ? count - k : R::kLanes;
            if (left == R::kLanes) {
                std::memcpy(out + k, &sums, sizeof(sums));
            } else {
                for (int64_t q = 0; q < left; ++q) out[k + q] = sums[q];
            }
        }
    }
}

template <class A, int Width>
void set_narrow(KernelTable<A>& table) {
    constexpr int W = Width == 0 ? 1 : (8 << Width) / static_cast<int>(sizeof(A));
    table.narrow_product[Width] = narrow_product<A, W>;
    table.narrow_transposed[Width] = W == 1 ? single_transposed<A> : narrow_transposed<A, W>;
    table.narrow_dot[Width] = narrow_dot<A, W>;
    if constexpr (Width + 1 < kNarrowWidths) set_narrow<A, Width + 1>(table);
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
