// The leaf kernels, written once and compiled for each instruction set (see vec.h).

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// Tiles that a kernel takes at a time: their addresses are worked out once and serve every row.
constexpr int64_t kTilesAtOnce = 16;

// One tile, ready to be walked by rows.
template <class A, class Value>
struct TileRows {
    const unsigned char* row_end;  // the byte behind the bits of row 0
    const int16_t* row_offset;
    Value* values;
    const int64_t* column_offset;

    TileRows() = default;
    TileRows(const PanelWork<A>& work, int64_t tile, Value* all_values) {
        const TileMatrix& m = *work.matrix;
        row_end = m.bits + (tile * m.tile_size * m.tile_size + m.tile_size) / 8;
        row_offset = m.row_offset + tile * m.tile_size;
        values = all_values + m.tile_start[tile];
        column_offset = work.column_offset + m.tile_col[tile] * m.tile_size;
    }

    // Reads eight bytes whatever the tile's size: those in front of the row, which are there (see TileMatrix),
    // are shifted out.
    uint64_t bits(int64_t row, int64_t row_bytes, int shift) const {
        uint64_t word;
        std::memcpy(&word, row_end + row * row_bytes - 8, 8);
        return word >> shift;
    }
};

template <class A>
inline Vec<A> broadcast(A value) {
    return value - Vec<A>{};  // exact for every value, -0 too
}

// sum += the products of one tile row's values with the features that its bits name.
template <class A, int V>
inline void add_row(Vec<A> (&sum)[V], uint64_t bits, const A* value, const A* x, const int64_t* offset) {
    for (; bits != 0; bits &= bits - 1) {
        const A* feature = x + offset[__builtin_ctzll(bits)];
        const Vec<A> weight = broadcast<A>(*value++);
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) sum[j] += weight * load<A>(feature + j * kLanes<A>);
    }
}

// The rows of a tile by how many values they have. Loops of one length predict; in narrow panels a wrong guess for
// every row would cost more than the arithmetic.
template <class A, class Value>
struct RowsByCount {
    uint8_t count[64];
    uint8_t order[64];

    RowsByCount(const TileRows<A, Value>& tile, int64_t rows, int64_t row_bytes, int shift) {
        uint8_t place[66] = {};
        for (int64_t r = 0; r < rows; ++r) {
            count[r] = static_cast<uint8_t>(__builtin_popcountll(tile.bits(r, row_bytes, shift)));
            ++place[count[r] + 1];
        }
        for (int k = 0; k < 65; ++k) place[k + 1] = static_cast<uint8_t>(place[k + 1] + place[k]);
        for (int64_t r = 0; r < rows; ++r) order[place[count[r]]++] = static_cast<uint8_t>(r);
    }
};

template <class A, int V>
void accumulate_narrow(const PanelWork<A>& given, const A* values, bool fresh, const A* start) {
    constexpr int64_t lanes = kLanes<A>;
    const PanelWork<A> work = given;
    const int64_t row_bytes = work.matrix->tile_size / 8;
    const int shift = static_cast<int>(64 - work.matrix->tile_size);
    if (fresh) {
        for (int64_t r = 0; r < work.rows; ++r) {
            const Vec<A> initial = broadcast<A>(start != nullptr ? start[r] : A(0));
            for (int j = 0; j < V; ++j) store<A>(work.y + r * work.y_stride + j * lanes, initial);
        }
    }
    for (int64_t i = 0; i < work.tile_count; ++i) {
        const TileRows<A, const A> tile(work, work.tiles[i], values);
        const RowsByCount<A, const A> rows(tile, work.rows, row_bytes, shift);
        for (int64_t k = 0; k < work.rows; ++k) {
            const int64_t r = rows.order[k];
            A* y = work.y + r * work.y_stride;
            Vec<A> sum[V];
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) sum[j] = load<A>(y + j * lanes);
            add_row<A, V>(sum, tile.bits(r, row_bytes, shift), tile.values + tile.row_offset[r],
                          work.x, tile.column_offset);
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) store<A>(y + j * lanes, sum[j]);
        }
    }
}

template <class A, int V>
void accumulate(const PanelWork<A>& given, const A* values, bool fresh, const A* start) {
    constexpr int64_t lanes = kLanes<A>;
    const PanelWork<A> work = given;
    const int64_t row_bytes = work.matrix->tile_size / 8;
    const int shift = static_cast<int>(64 - work.matrix->tile_size);
    TileRows<A, const A> tiles[kTilesAtOnce];
    int64_t first = 0;
    do {
        const int64_t count = work.tile_count - first < kTilesAtOnce ? work.tile_count - first : kTilesAtOnce;
        for (int64_t i = 0; i < count; ++i) tiles[i] = TileRows<A, const A>(work, work.tiles[first + i], values);
        for (int64_t r = 0; r < work.rows; ++r) {
            if (!fresh && count == 1 && tiles[0].bits(r, row_bytes, shift) == 0) continue;
            A* y = work.y + r * work.y_stride;
            Vec<A> sum[V];
            if (fresh) {
                const Vec<A> initial = broadcast<A>(start != nullptr ? start[r] : A(0));
#pragma GCC unroll 8
                for (int j = 0; j < V; ++j) sum[j] = initial;
            } else {
#pragma GCC unroll 8
                for (int j = 0; j < V; ++j) sum[j] = load<A>(y + j * lanes);
            }
            for (const TileRows<A, const A>* tile = tiles; tile != tiles + count; ++tile) {
                const uint64_t bits = tile->bits(r, row_bytes, shift);
                add_row<A, V>(sum, bits, tile->values + tile->row_offset[r], work.x, tile->column_offset);
            }
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) store<A>(y + j * lanes, sum[j]);
        }
        first += kTilesAtOnce;
        fresh = false;
    } while (first < work.tile_count);
}

template <class A, int V>
void dot(const PanelWork<A>& given, A* values_gradient, bool fresh) {
    constexpr int64_t lanes = kLanes<A>;
    const PanelWork<A> work = given;
    const int64_t row_bytes = work.matrix->tile_size / 8;
    const int shift = static_cast<int>(64 - work.matrix->tile_size);
    TileRows<A, A> tiles[kTilesAtOnce];
    for (int64_t first = 0; first < work.tile_count; first += kTilesAtOnce) {
        const int64_t count = work.tile_count - first < kTilesAtOnce ? work.tile_count - first : kTilesAtOnce;
        for (int64_t i = 0; i < count; ++i) tiles[i] = TileRows<A, A>(work, work.tiles[first + i], values_gradient);
        for (int64_t r = 0; r < work.rows; ++r) {
            const A* y = work.y + r * work.y_stride;
            Vec<A> gradient[V];
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) gradient[j] = load<A>(y + j * lanes);
            for (const TileRows<A, A>* tile = tiles; tile != tiles + count; ++tile) {
                A* out = tile->values + tile->row_offset[r];
                const int64_t* offset = tile->column_offset;
                for (uint64_t bits = tile->bits(r, row_bytes, shift); bits != 0; bits &= bits - 1) {
                    const A* feature = work.x + offset[__builtin_ctzll(bits)];
                    Vec<A> sum = gradient[0] * load<A>(feature);
#pragma GCC unroll 8
                    for (int j = 1; j < V; ++j) sum += gradient[j] * load<A>(feature + j * lanes);
                    const A total = sum_lanes<A>(sum);
                    *out = fresh ? total : *out + total;
                    ++out;
                }
            }
        }
    }
}

template <class A, int V>
void accumulate_list(const ListWork<A>& given, const A* values, bool fresh, const A* start) {
    constexpr int64_t lanes = kLanes<A>;
    const ListWork<A> work = given;
    for (int64_t r = 0; r < work.rows; ++r) {
        int64_t i = work.ptr[r];
        const int64_t end = work.ptr[r + 1];
        if (!fresh && i == end) continue;
        A* y = work.y + r * work.y_stride;
        Vec<A> sum[V];
        const Vec<A> initial = broadcast<A>(fresh && start != nullptr ? start[r] : A(0));
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) sum[j] = fresh ? initial : load<A>(y + j * lanes);
        for (; i < end; ++i) {
            const A* feature = work.x + work.offset[i];
            const Vec<A> weight = broadcast<A>(values[i]);
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) sum[j] += weight * load<A>(feature + j * lanes);
        }
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) store<A>(y + j * lanes, sum[j]);
    }
}

template <class A, int V>
void dot_list(const ListWork<A>& given, const int64_t* index, A* values_gradient) {
    constexpr int64_t lanes = kLanes<A>;
    const ListWork<A> work = given;
    for (int64_t r = 0; r < work.rows; ++r) {
        if (work.ptr[r] == work.ptr[r + 1]) continue;
        Vec<A> gradient[V];
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) gradient[j] = load<A>(work.y + r * work.y_stride + j * lanes);
        for (int64_t i = work.ptr[r]; i < work.ptr[r + 1]; ++i) {
            const A* feature = work.x + work.offset[i];
            Vec<A> sum = gradient[0] * load<A>(feature);
#pragma GCC unroll 8
            for (int j = 1; j < V; ++j) sum += gradient[j] * load<A>(feature + j * lanes);
            values_gradient[index[i]] += sum_lanes<A>(sum);
        }
    }
}

inline Vec<float> load_as(const float* from) { return load<float>(from); }
inline Vec<double> load_as(const double* from) { return load<double>(from); }
inline Vec<float> load_as(const BFloat16* from) { return from_bfloat16(&from->bits); }
inline void store_as(float* to, Vec<float> v) { store<float>(to, v); }
inline void store_as(double* to, Vec<double> v) { store<double>(to, v); }
inline void store_as(BFloat16* to, Vec<float> v) { to_bfloat16(&to->bits, v); }

inline Vec<float> load_first_as(const float* from, int64_t count) { return load_first(from, count); }
inline Vec<double> load_first_as(const double* from, int64_t count) { return load_first(from, count); }
inline Vec<float> load_first_as(const BFloat16* from, int64_t count) {
    uint16_t halves[kLanes<float>] = {};
    for (int64_t i = 0; i < count; ++i) halves[i] = from[i].bits;
    return from_bfloat16(halves);
}
inline void store_first_as(float* to, Vec<float> v, int64_t count) { store_first(to, v, count); }
inline void store_first_as(double* to, Vec<double> v, int64_t count) { store_first(to, v, count); }
inline void store_first_as(BFloat16* to, Vec<float> v, int64_t count) {
    uint16_t halves[kLanes<float>];
    to_bfloat16(halves, v);
    for (int64_t i = 0; i < count; ++i) to[i].bits = halves[i];
}

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(BFloat16 v) {
    const uint32_t word = static_cast<uint32_t>(v.bits) << 16;
    float f;
    std::memcpy(&f, &word, sizeof(f));
    return f;
}
inline void narrow(float* to, float v) { *to = v; }
inline void narrow(double* to, double v) { *to = v; }
inline void narrow(BFloat16* to, float v) {
    uint16_t lanes[kLanes<float>];
    to_bfloat16(lanes, Vec<float>{} + v);
    to->bits = lanes[0];
}

// Feature-major samples need no transposing: each feature is already a run.
template <class T, class A>
void pack_runs(const Samples<const T>& from, A* panel, int64_t width) {
    constexpr int64_t lanes = kLanes<A>;
    for (int64_t k = 0; k < from.features; ++k) {
        const T* run = from.data + k * from.feature_stride;
        A* out = panel + k * width;
        int64_t s = 0;
        for (; s + lanes <= from.count; s += lanes) store<A>(out + s, load_as(run + s));
        if (s < from.count) {
            const Vec<A> rest = load_first_as(run + s, from.count - s);
            const int64_t room = width - s;
            if (room < lanes) {
                store_first(out + s, rest, room);
            } else {
                store<A>(out + s, rest);
            }
            s += lanes;
        }
        for (; s < width; ++s) out[s] = A(0);
    }
}

template <class T, class A>
void pack_any(const Samples<const T>& from, A* panel, int64_t width, int64_t feature_begin) {
    for (int64_t k = feature_begin; k < from.features; ++k) {
        const T* feature = from.data + k * from.feature_stride;
        A* out = panel + k * width;
        for (int64_t s = 0; s < from.count; ++s) out[s] = widen(feature[s * from.sample_stride]);
        for (int64_t s = from.count; s < width; ++s) out[s] = A(0);
    }
}

template <class T, class A>
void pack(const Samples<const T>& from, A* panel, int64_t width) {
    constexpr int64_t lanes = kLanes<A>;
    if (from.sample_stride == 1) return pack_runs<T, A>(from, panel, width);
    if (from.feature_stride != 1 || width % lanes != 0) return pack_any<T, A>(from, panel, width, 0);
    const int64_t whole = from.features / lanes * lanes;
    // Along the samples' rows, a few rows at a time: streams that the prefetcher follows.
    for (int64_t s = 0; s < width; s += lanes) {
        for (int64_t k = 0; k < whole; k += lanes) {
            Vec<A> square[lanes];
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) {
                square[i] = s + i < from.count ? load_as(from.data + (s + i) * from.sample_stride + k) : Vec<A>{};
            }
            transpose_square<A>(square);
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) store<A>(panel + (k + i) * width + s, square[i]);
        }
    }
    pack_any<T, A>(from, panel, width, whole);
}

template <class T, class A>
void unpack_any(const A* panel, int64_t width, const Samples<T>& to, int64_t feature_begin) {
    for (int64_t s = 0; s < to.count; ++s) {
        for (int64_t k = feature_begin; k < to.features; ++k) {
            narrow(to.data + s * to.sample_stride + k * to.feature_stride, panel[k * width + s]);
        }
    }
}

template <class T, class A>
void unpack_runs(const A* panel, int64_t width, const Samples<T>& to) {
    constexpr int64_t lanes = kLanes<A>;
    for (int64_t k = 0; k < to.features; ++k) {
        const A* from = panel + k * width;
        T* run = to.data + k * to.feature_stride;
        int64_t s = 0;
        for (; s + lanes <= to.count; s += lanes) store_as(run + s, load<A>(from + s));
        if (s < to.count) store_first_as(run + s, load_first(from + s, to.count - s), to.count - s);
    }
}

template <class T, class A>
void unpack(const A* panel, int64_t width, const Samples<T>& to) {
    constexpr int64_t lanes = kLanes<A>;
    if (to.sample_stride == 1) return unpack_runs<T, A>(panel, width, to);
    if (to.feature_stride != 1 || width % lanes != 0) return unpack_any<T, A>(panel, width, to, 0);
    const int64_t whole = to.features / lanes * lanes;
    for (int64_t s = 0; s < to.count; s += lanes) {
        const int64_t live = to.count - s < lanes ? to.count - s : lanes;
        for (int64_t k = 0; k < whole; k += lanes) {
            Vec<A> square[lanes];
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) square[i] = load<A>(panel + (k + i) * width + s);
            transpose_square<A>(square);
            for (int64_t i = 0; i < live; ++i) store_as(to.data + (s + i) * to.sample_stride + k, square[i]);
        }
    }
    unpack_any<T, A>(panel, width, to, whole);
}

// The running sum of one row's products with one sample.
template <class A>
struct RowSum {
    A even = A(0);
    A odd = A(0);

    void add(uint64_t bits, const A* value, const A* x) {
        for (; bits != 0; bits &= bits - 1) {
            even += *value++ * x[__builtin_ctzll(bits)];
            const A previous = even;
            even = odd;
            odd = previous;
        }
    }
    A total() const { return even + odd; }
};

// One sample has no panel to share a weight with: here a row's own columns fill the vector.
template <class A>
void vector_product(const PanelWork<A>& given, const A* values, const A* start) {
    const PanelWork<A> work = given;
    const int64_t size = work.matrix->tile_size;
    const int64_t row_bytes = size / 8;
    const int shift = static_cast<int>(64 - size);
    TileRows<A, const A> tiles[kTilesAtOnce];
    const A* x[kTilesAtOnce];
    int64_t first = 0;
    do {
        const int64_t count = work.tile_count - first < kTilesAtOnce ? work.tile_count - first : kTilesAtOnce;
        for (int64_t i = 0; i < count; ++i) {
            tiles[i] = TileRows<A, const A>(work, work.tiles[first + i], values);
            x[i] = work.x + work.matrix->tile_col[work.tiles[first + i]] * size;
        }
        for (int64_t r = 0; r < work.rows; ++r) {
            RowSum<A> sum;
            for (int64_t i = 0; i < count; ++i) {
                sum.add(tiles[i].bits(r, row_bytes, shift), tiles[i].values + tiles[i].row_offset[r], x[i]);
            }
            A* y = work.y + r * work.y_stride;
            const A before = first > 0 ? *y : (start != nullptr ? start[r] : A(0));
            *y = before + sum.total();
        }
        first += kTilesAtOnce;
    } while (first < work.tile_count);
}

// Transposes 64 words of 64 bits: swaps ever smaller off-diagonal blocks.
inline void transpose_bits(uint64_t (&words)[64]) {
    uint64_t mask = 0x00000000FFFFFFFFu;
    for (int width = 32; width > 0; width /= 2, mask ^= mask << width) {
        for (int i = 0; i < 64; i = ((i | width) + 1) & ~width) {
            const uint64_t swap = ((words[i] >> width) ^ words[i | width]) & mask;
            words[i] ^= swap << width;
            words[i | width] ^= swap;
        }
    }
}

template <class A>
void transpose_tile(const TileTranspose<A>& given) {
    const TileTranspose<A> work = given;
    const int64_t row_bytes = work.tile_size / 8;
    const int shift = static_cast<int>(64 - work.tile_size);
    uint64_t rows[64] = {};
    uint64_t columns[64];
    for (int64_t r = 0; r < work.tile_size; ++r) {
        uint64_t word;
        std::memcpy(&word, work.bits + (r + 1) * row_bytes - 8, 8);
        rows[r] = word >> shift;
    }
    std::memcpy(columns, rows, sizeof(rows));
    transpose_bits(columns);
    int32_t place[64];
    int32_t filled = 0;
    for (int64_t c = 0; c < work.tile_size; ++c) {
        place[c] = filled;
        work.row_offset_t[c] = static_cast<int16_t>(filled);
        filled += __builtin_popcountll(columns[c]);
        std::memcpy(work.bits_t + c * row_bytes, &columns[c], static_cast<size_t>(row_bytes));
    }
    const A* value = work.values;
    for (int64_t r = 0; r < work.tile_size; ++r) {
        for (uint64_t bits = rows[r]; bits != 0; bits &= bits - 1) {
            work.values_t[place[__builtin_ctzll(bits)]++] = *value++;
        }
    }
}

template <class A, int V>
void set_widths(KernelTable<A>& table) {
    table.accumulate[V] = accumulate<A, V>;
    table.dot[V] = dot<A, V>;
    table.accumulate_list[V] = accumulate_list<A, V>;
    table.dot_list[V] = dot_list<A, V>;
    if constexpr (V < kMaxVectors) set_widths<A, V + 1>(table);
}

template <class A>
KernelTable<A> make_table() {
    KernelTable<A> table = {};
    table.lanes = kLanes<A>;
    set_widths<A, 1>(table);
    table.accumulate[1] = accumulate_narrow<A, 1>;
    table.accumulate[2] = accumulate_narrow<A, 2>;
    table.pack = pack<A, A>;
    table.unpack = unpack<A, A>;
    table.transpose_tile = transpose_tile<A>;
    table.vector_product = vector_product<A>;
    return table;
}

}  // namespace

KernelTable<float> float_table() {
    KernelTable<float> table = make_table<float>();
    table.pack_bfloat16 = pack<BFloat16, float>;
    table.unpack_bfloat16 = unpack<BFloat16, float>;
    return table;
}

KernelTable<double> double_table() { return make_table<double>(); }

}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
