// Moving values from one pattern to another.
#include <algorithm>

#include "element_size.h"
#include "pattern_walk.h"
#include "sparsekern/pattern_values.h"

namespace sparsekern {
namespace {

constexpr int64_t kTileValues = 64 * 64;

// The tile of `p` at (tile_row, tile_col), or -1 when it is empty.
int64_t find_tile(const PatternView& p, int64_t tile_row, int32_t tile_col) {
    const int32_t* begin = p.tile_col + p.tile_row_ptr[tile_row];
    const int32_t* end = p.tile_col + p.tile_row_ptr[tile_row + 1];
    const int32_t* found = std::lower_bound(begin, end, tile_col);
    return found != end && *found == tile_col ? found - p.tile_col : -1;
}

template <typename Element>
void transfer_row(uint64_t from_bits, const Element* from, uint64_t to_bits, Element* to) {
    if (from_bits == to_bits) {
        std::copy(from, from + popcount64(to_bits), to);
        return;
    }
    for_each_bit(to_bits, [&](int column) {
        const bool kept = (from_bits >> column) & 1;
        *to++ = kept ? from[popcount64(from_bits & low_bits(column))] : Element(0);
    });
}

template <typename Element>
void transfer_as(const PatternView& from, const Element* from_values, const PatternView& to,
                 Element* to_values, int threads) {
    for_each_tile(to, threads, [&](int64_t tile, int64_t tile_row) {
        const int64_t source = find_tile(from, tile_row, to.tile_col[tile]);
        if (source < 0) {
            std::fill(to_values + to.tile_start[tile], to_values + to.tile_start[tile + 1], Element(0));
            return;
        }
        for (int64_t r = 0; r < to.tile_size; ++r) {
            transfer_row(from.row_bits(source, r), from_values + from.row_start(source, r),
                         to.row_bits(tile, r), to_values + to.row_start(tile, r));
        }
    });
}

// Where the values of a target tile come from: the index among those of the source tile, or kNew.
constexpr int16_t kNew = -1;

void find_origins(const PatternView& from, int64_t source, const PatternView& to, int64_t tile,
                  int16_t* origin) {
    for (int64_t r = 0; r < to.tile_size; ++r) {
        const uint64_t from_bits = from.row_bits(source, r);
        const int64_t first = from.row_offset[source * from.tile_size + r];
        for_each_bit(to.row_bits(tile, r), [&](int column) {
            const bool kept = (from_bits >> column) & 1;
            const int64_t at = first + popcount64(from_bits & low_bits(column));
            *origin++ = kept ? static_cast<int16_t>(at) : kNew;
        });
    }
}

template <typename Element>
void copy_from_origins(const Element* from, const int16_t* origin, Element* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = origin[i] == kNew ? Element(0) : from[origin[i]];
}

void check_patterns(const PatternView& from, const PatternView& to) {
    if (from.rows != to.rows || from.cols != to.cols || from.dims != to.dims || from.cin != to.cin ||
        from.kh != to.kh || from.kw != to.kw) {
        throw std::invalid_argument("the two patterns must have the same shape");
    }
    if (from.tile_size != to.tile_size) {
        throw std::invalid_argument("the two patterns must have the same tile size");
    }
}

}  // namespace

void transfer(const PatternView& from, const void* from_values, int64_t from_elements, const PatternView& to,
              void* to_values, int64_t to_elements, int64_t element_size, int threads) {
    check_threads(threads);
    check_patterns(from, to);
    check_element_size(element_size);
    check_elements("from_values", from_values, element_size, from_elements, from.nnz);
    check_elements("to_values", to_values, element_size, to_elements, to.nnz);
    with_element_size(element_size, [&](auto zero) {
        using Element = decltype(zero);
        transfer_as(from, static_cast<const Element*>(from_values), to, static_cast<Element*>(to_values),
                    threads);
    });
}

void transfer_all(const PatternView& from, const PatternView& to, const Transfer* vectors, int64_t count,
                  int threads) {
    check_threads(threads);
    check_patterns(from, to);
    if (count == 1) {
        return transfer(from, vectors->from_values, vectors->from_elements, to, vectors->to_values,
                        vectors->to_elements, vectors->element_size, threads);
    }
    for (int64_t v = 0; v < count; ++v) {
        const Transfer& vector = vectors[v];
        check_element_size(vector.element_size);
        check_elements("from_values", vector.from_values, vector.element_size, vector.from_elements,
                       from.nnz);
        check_elements("to_values", vector.to_values, vector.element_size, vector.to_elements, to.nnz);
    }
    for_each_tile(to, threads, [&](int64_t tile, int64_t tile_row) {
        const int64_t source = find_tile(from, tile_row, to.tile_col[tile]);
        const int64_t start = to.tile_start[tile], size = to.tile_start[tile + 1] - start;
        int16_t origin[kTileValues];
        if (source >= 0) {
            find_origins(from, source, to, tile, origin);
        } else {
            std::fill(origin, origin + size, kNew);
        }
        const int64_t from_start = source < 0 ? 0 : from.tile_start[source];
        for (int64_t v = 0; v < count; ++v) {
            with_element_size(vectors[v].element_size, [&](auto zero) {
                using Element = decltype(zero);
                copy_from_origins(static_cast<const Element*>(vectors[v].from_values) + from_start, origin,
                                  static_cast<Element*>(vectors[v].to_values) + start, size);
            });
        }
    });
}

}  // namespace sparsekern
