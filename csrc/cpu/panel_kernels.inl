// The leaf kernels, written once and compiled for each instruction set (see vec.h).

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// A tile row's bits as one word. The switch is on a run constant, so it predicts.
inline uint64_t read_bits(const TileMatrix& m, int64_t tile, int64_t row) {
    const int64_t at = tile * m.tile_size + row;
    switch (m.tile_size) {
        case 64: {
            uint64_t word;
            std::memcpy(&word, m.bits + at * 8, 8);
            return word;
        }
        case 32: {
            uint32_t word;
            std::memcpy(&word, m.bits + at * 4, 4);
            return word;
        }
        case 16: {
            uint16_t word;
            std::memcpy(&word, m.bits + at * 2, 2);
            return word;
        }
        default:
            return m.bits[at];
    }
}

inline int64_t row_start(const TileMatrix& m, int64_t tile, int64_t row) {
    return m.tile_start[tile] + m.row_offset[tile * m.tile_size + row];
}

template <class A, int V>
void accumulate(const PanelWork<A>& work, const A* values, bool fresh, const A* start) {
    constexpr int64_t lanes = kLanes<A>;
    const TileMatrix& m = *work.matrix;
    for (int64_t r = work.row_begin; r < work.row_end; ++r) {
        A* y = work.y + work.y_row[r];
        const A* x = work.x + work.x_row[r];
        Vec<A> sum[V];
        const A first = fresh && start != nullptr ? start[r] : A(0);
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) sum[j] = fresh ? Vec<A>{} + first : load<A>(y + j * lanes);
        for (int64_t i = 0; i < work.tile_count; ++i) {
            const int64_t tile = work.tiles[i];
            uint64_t bits = read_bits(m, tile, r);
            const A* value = values + row_start(m, tile, r);
            const int64_t* offset = work.column_offset + m.tile_col[tile] * m.tile_size;
            while (bits != 0) {
                const A* feature = x + offset[__builtin_ctzll(bits)];
                bits &= bits - 1;
                const Vec<A> weight = Vec<A>{} + *value++;
#pragma GCC unroll 8
                for (int j = 0; j < V; ++j) sum[j] += weight * load<A>(feature + j * lanes);
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) store<A>(y + j * lanes, sum[j]);
    }
}

template <class A, int V>
void dot(const PanelWork<A>& work, A* values_gradient, bool fresh) {
    constexpr int64_t lanes = kLanes<A>;
    const TileMatrix& m = *work.matrix;
    for (int64_t r = work.row_begin; r < work.row_end; ++r) {
        const A* y = work.y + work.y_row[r];
        const A* x = work.x + work.x_row[r];
        Vec<A> gradient[V];
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) gradient[j] = load<A>(y + j * lanes);
        for (int64_t i = 0; i < work.tile_count; ++i) {
            const int64_t tile = work.tiles[i];
            uint64_t bits = read_bits(m, tile, r);
            A* out = values_gradient + row_start(m, tile, r);
            const int64_t* offset = work.column_offset + m.tile_col[tile] * m.tile_size;
            while (bits != 0) {
                const A* feature = x + offset[__builtin_ctzll(bits)];
                bits &= bits - 1;
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

inline Vec<float> load_as(const float* from) { return load<float>(from); }
inline Vec<double> load_as(const double* from) { return load<double>(from); }
inline Vec<float> load_as(const BFloat16* from) { return from_bfloat16(&from->bits); }
inline void store_as(float* to, Vec<float> v) { store<float>(to, v); }
inline void store_as(double* to, Vec<double> v) { store<double>(to, v); }
inline void store_as(BFloat16* to, Vec<float> v) { to_bfloat16(&to->bits, v); }

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
        for (; s < from.count; ++s) out[s] = widen(run[s]);
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
    if (from.feature_stride != 1) return pack_any<T, A>(from, panel, width, 0);
    int64_t k = 0;
    for (; k + lanes <= from.features; k += lanes) {
        for (int64_t s = 0; s < width; s += lanes) {
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
    pack_any<T, A>(from, panel, width, k);
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
        for (; s < to.count; ++s) narrow(run + s, from[s]);
    }
}

template <class T, class A>
void unpack(const A* panel, int64_t width, const Samples<T>& to) {
    constexpr int64_t lanes = kLanes<A>;
    if (to.sample_stride == 1) return unpack_runs<T, A>(panel, width, to);
    if (to.feature_stride != 1) return unpack_any<T, A>(panel, width, to, 0);
    int64_t k = 0;
    for (; k + lanes <= to.features; k += lanes) {
        for (int64_t s = 0; s < to.count; s += lanes) {
            Vec<A> square[lanes];
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) square[i] = load<A>(panel + (k + i) * width + s);
            transpose_square<A>(square);
            const int64_t live = to.count - s < lanes ? to.count - s : lanes;
            for (int64_t i = 0; i < live; ++i) store_as(to.data + (s + i) * to.sample_stride + k, square[i]);
        }
    }
    unpack_any<T, A>(panel, width, to, k);
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

#if defined(__AVX512F__)
// Spreads the values over the lanes of their columns, so that a row needs no index arithmetic.
template <>
struct RowSum<float> {
    __m512 lanes = _mm512_setzero_ps();

    void add(uint64_t bits, const float* value, const float* x) {
        for (; bits != 0; bits >>= 16, x += 16) {
            const __mmask16 mask = static_cast<__mmask16>(bits);
            lanes = _mm512_fmadd_ps(_mm512_maskz_expandloadu_ps(mask, value), _mm512_maskz_loadu_ps(mask, x), lanes);
            value += __builtin_popcount(mask);
        }
    }
    float total() const { return sum_lanes<float>(lanes); }
};
#endif

// One sample has no panel to share a weight with: here a row's own columns fill the vector.
template <class A>
void vector_product(const PanelWork<A>& work, const A* values, bool fresh, const A* start) {
    const TileMatrix& m = *work.matrix;
    for (int64_t r = work.row_begin; r < work.row_end; ++r) {
        A* y = work.y + work.y_row[r];
        const A* x = work.x + work.x_row[r];
        RowSum<A> sum;
        for (int64_t i = 0; i < work.tile_count; ++i) {
            const int64_t tile = work.tiles[i];
            sum.add(read_bits(m, tile, r), values + row_start(m, tile, r), x + m.tile_col[tile] * m.tile_size);
        }
        const A first = fresh ? (start != nullptr ? start[r] : A(0)) : *y;
        *y = first + sum.total();
    }
}

template <class A>
KernelTable<A> make_table() {
    KernelTable<A> table = {};
    table.lanes = kLanes<A>;
    table.accumulate[1] = accumulate<A, 1>;
    table.accumulate[2] = accumulate<A, 2>;
    table.accumulate[3] = accumulate<A, 3>;
    table.accumulate[4] = accumulate<A, 4>;
    table.accumulate[5] = accumulate<A, 5>;
    table.accumulate[6] = accumulate<A, 6>;
    table.accumulate[7] = accumulate<A, 7>;
    table.accumulate[8] = accumulate<A, 8>;
    table.dot[1] = dot<A, 1>;
    table.dot[2] = dot<A, 2>;
    table.dot[3] = dot<A, 3>;
    table.dot[4] = dot<A, 4>;
    table.dot[5] = dot<A, 5>;
    table.dot[6] = dot<A, 6>;
    table.dot[7] = dot<A, 7>;
    table.dot[8] = dot<A, 8>;
    table.pack = pack<A, A>;
    table.unpack = unpack<A, A>;
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
