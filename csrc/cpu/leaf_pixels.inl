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

inline int64_t within(int64_t value, int64_t limit) { return value < 0 ? 0 : value < limit ? value : limit; }

// Lanes [begin, end) from every `Step`-th pixel, the others 0.
template <int Step, class A, class T>
inline Vec<A> load_pixels(const T* from, int64_t begin, int64_t end) {
    constexpr int64_t lanes = kLanes<A>;
    static_assert(Step == 1 || Step == 2);
    if constexpr (Step == 1) return load_range_as(from, begin, end);
    const int64_t first = 2 * begin;
    const int64_t last = begin < end ? 2 * end - 1 : first;
    return alternate(
        load_range_as(from, within(first, lanes), within(last, lanes)),
        load_range_as(from + lanes - 1, within(first - lanes + 1, lanes), within(last - lanes + 1, lanes)));
}
template <int Step, class A, class T>
inline Vec<A> load_pixels(const T* from) {
    if constexpr (Step == 1) return load_as(from);
    return alternate(load_as(from), load_as(from + kLanes<A> - 1));
}

// A column of vectors at a time: which lanes are live is then the same for all rows.
template <int Step, class T, class A>
void pack_rows(const T* from, int64_t row_stride, const PixelPlane& plane, A* to, int64_t pitch) {
    constexpr int64_t lanes = kLanes<A>;
    const int64_t rows = plane.rows;
    for (int64_t s = 0; s < pitch; s += lanes) {
        const int64_t begin = within(plane.left - s, lanes);
        const int64_t end = within(plane.left + plane.columns - s, lanes);
        const int64_t room = pitch - s;
        const T* row = from + Step * (s - plane.left);
        A* out = to + s;
        if (room < lanes) {
            for (int64_t r = 0; r < rows; ++r, row += row_stride, out += pitch) {
                store_first(out, load_pixels<Step, A>(row, begin, end), room);
            }
        } else if (end - begin == lanes) {
            for (int64_t r = 0; r < rows; ++r, row += row_stride, out += pitch) {
                store<A>(out, load_pixels<Step, A>(row));
            }
        } else {
            for (int64_t r = 0; r < rows; ++r, row += row_stride, out += pitch) {
                store<A>(out, load_pixels<Step, A>(row, begin, end));
            }
        }
    }
}

template <class T, class A>
void pack_strided_rows(const T* from, int64_t row_stride, int64_t column_stride, const PixelPlane& plane,
                       A* to, int64_t pitch) {
    const int64_t end = plane.left + plane.columns;
    for (int64_t r = 0; r < plane.rows; ++r, from += row_stride, to += pitch) {
        fill_zeros(to, plane.left);
        for (int64_t s = plane.left; s < end; ++s) to[s] = widen(from[(s - plane.left) * column_stride]);
        fill_zeros(to + end, pitch - end);
    }
}

template <class T, class A>
void pack_plane(const PlaneWork<T>& work, const T* from, const PixelPlane& plane, A* to, int64_t pitch) {
    if (work.column_stride == 1) {
        pack_rows<1, T, A>(from, work.row_stride, plane, to, pitch);
    } else if (work.column_stride == 2) {
        pack_rows<2, T, A>(from, work.row_stride, plane, to, pitch);
    } else {
        pack_strided_rows<T, A>(from, work.row_stride, work.column_stride, plane, to, pitch);
    }
}

// Channel by channel, since its planes share what they read.
template <class T, class A>
void pack_planes(const PlaneWork<T>& given, A* to) {
    const PlaneWork<T> work = given;
    for (int64_t c = 0; c < work.channels; ++c) {
        for (int64_t p = 0; p < work.plane_count; ++p, to += work.plane_size) {
            PixelPlane plane = work.planes[p];
            const T* from = work.data + c * work.channel_stride + plane.source;
            A* out = to + plane.above * work.pitch;
            fill_zeros(to, plane.above * work.pitch);
            // The zeros behind the last row may end sooner.
            const bool tight = plane.rows > 0 && out + plane.rows * work.pitch > to + work.plane_size;
            plane.rows -= tight;
            pack_plane(work, from, plane, out, work.pitch);
            from += plane.rows * work.row_stride;
            out += plane.rows * work.pitch;
            if (tight) {
                plane.rows = 1;
                pack_plane(work, from, plane, out, to + work.plane_size - out);
            } else {
                fill_zeros(out, to + work.plane_size - out);
            }
        }
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
                store_first_as(row + whole, load_range(source + whole, 0, rest), rest);
            }
        }
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
