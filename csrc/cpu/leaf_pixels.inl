// Blocks of pixels into windows and out of sums, with the conversions that stored types need.

#include "kernel_table.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

template <class A>
void fill_zeros(A* to, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes<A> <= count; i += kLanes<A>) store<A>(to + i, Vec<A>{});
    for (; i < count; ++i) to[i] = A(0);
}

inline Vec<float> load_range_as(const float* from, int64_t begin, int64_t end) {
    return load_range(from, begin, end);
}
inline Vec<double> load_range_as(const double* from, int64_t begin, int64_t end) {
    return load_range(from, begin, end);
}
inline Vec<float> load_range_as(const BFloat16* from, int64_t begin, int64_t end) {
    uint16_t halves[kLanes<float>] = {};
    for (int64_t i = begin; i < end; ++i) halves[i] = from[i].bits;
    return from_bfloat16(halves);
}

inline int64_t within(int64_t value, int64_t limit) { return value < 0 ? 0 : value < limit ? value : limit; }

// One channel's rows, a column of vectors at a time: which lanes are live is then the same for all rows.
template <class T, class A>
void pack_rows(const T* from, const PixelBlock<const T>& block, int64_t left, A* to, int64_t pitch) {
    constexpr int64_t lanes = kLanes<A>;
    for (int64_t s = 0; s < pitch; s += lanes) {
        const int64_t begin = within(left - s, lanes);
        const int64_t end = within(left + block.columns - s, lanes);
        const int64_t room = pitch - s;
        const T* row = from + s - left;
        A* out = to + s;
        if (room < lanes) {
            for (int64_t r = 0; r < block.rows; ++r, row += block.row_stride, out += pitch) {
                store_first(out, load_range_as(row, begin, end), room);
            }
        } else if (end - begin == lanes) {
            for (int64_t r = 0; r < block.rows; ++r, row += block.row_stride, out += pitch) {
                store<A>(out, load_as(row));
            }
        } else {
            for (int64_t r = 0; r < block.rows; ++r, row += block.row_stride, out += pitch) {
                store<A>(out, load_range_as(row, begin, end));
            }
        }
    }
}

template <class T, class A>
void pack_strided_rows(const T* from, const PixelBlock<const T>& block, int64_t left, A* to, int64_t pitch) {
    for (int64_t r = 0; r < block.rows; ++r, from += block.row_stride, to += pitch) {
        fill_zeros(to, left);
        for (int64_t s = 0; s < block.columns; ++s) to[left + s] = widen(from[s * block.column_stride]);
        fill_zeros(to + left + block.columns, pitch - left - block.columns);
    }
}

template <class T, class A>
void pack_pixels(const PixelBlock<const T>& from, const PixelMargin& margin, A* to, const PixelRoom& room) {
    for (int64_t c = 0; c < from.channels; ++c, to += room.channel_stride) {
        const T* channel = from.data + c * from.channel_stride;
        A* const first = to + margin.above * room.pitch;
        fill_zeros(to, margin.above * room.pitch);
        if (from.column_stride == 1) {
            pack_rows<T, A>(channel, from, margin.left, first, room.pitch);
        } else {
            pack_strided_rows<T, A>(channel, from, margin.left, first, room.pitch);
        }
        A* const end = first + from.rows * room.pitch;
        fill_zeros(end, to + room.size - end);
    }
}

template <class T, class A>
void unpack_pixels(const A* from, const PixelRoom& room, const PixelBlock<T>& to) {
    constexpr int64_t lanes = kLanes<A>;
    const int64_t whole = to.column_stride == 1 ? to.columns / lanes * lanes : 0;
    const int64_t rest = to.columns - whole;
    for (int64_t c = 0; c < to.channels; ++c, from += room.channel_stride) {
        const A* source = from;
        T* row = to.data + c * to.channel_stride;
        for (int64_t r = 0; r < to.rows; ++r, row += to.row_stride, source += room.pitch) {
            for (int64_t s = 0; s < whole; s += lanes) store_as(row + s, load<A>(source + s));
            if (to.column_stride != 1) {
                for (int64_t s = 0; s < rest; ++s) narrow(row + s * to.column_stride, source[s]);
            } else if (rest > 0) {
                store_first_as(row + whole, load_first(source + whole, rest), rest);
            }
        }
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
