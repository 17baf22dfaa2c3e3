// Packing 2:4 weights: rows of groups that are chosen on their own, and strips of tiles with their transpose.

#include "leaf_two_four_masks.inl"
#include "pack_two_four_kernels.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

// `lanes` groups of up to four rows that begin at `from`: where they lie, or in `copy`, with zeros behind
// them, when a whole vector of groups would reach beyond the row.
template <int kSize>
struct WholeGroups {
    static constexpr int64_t kStride = 4 * kSize * kTwoFourLanes;

    const unsigned char* from;
    int64_t stride;
    unsigned char copy[4 * kStride];

    __attribute__((always_inline)) WholeGroups(const unsigned char* weight, int64_t weight_stride, int rows,
                                               int64_t lanes)
        : from(weight), stride(weight_stride) {
        if (lanes == kTwoFourLanes) return;
        std::memset(copy, 0, sizeof(copy));
        for (int row = 0; row < rows; ++row) {
            std::memcpy(copy + row * kStride, weight + row * weight_stride,
                        static_cast<size_t>(4 * kSize * lanes));
        }
        from = copy;
        stride = kStride;
    }
};

inline int64_t at_most(int64_t a, int64_t most) { return a < most ? a : most; }

// All ones in the first `lanes` lanes.
inline LongVec first_lanes(int64_t lanes) {
    LongVec live;
    for (int i = 0; i < kTwoFourLanes; ++i) live[i] = i < lanes ? ~uint64_t{0} : 0;
    return live;
}

// Writes a vector around the caches, where it is aligned; and orders such writes before all that follow.
inline void stream(unsigned char* to, DoubleVec words) {
#if SPARSEKERN_VECTOR_BYTES == 64
    _mm512_stream_pd(reinterpret_cast<double*>(to), (__m512d)words);
#elif SPARSEKERN_VECTOR_BYTES == 32
    _mm256_stream_pd(reinterpret_cast<double*>(to), (__m256d)words);
#else
    std::memcpy(to, &words, sizeof(words));
#endif
}
inline void end_streams() {
#if SPARSEKERN_VECTOR_BYTES > 16
    _mm_sfence();
#endif
}

inline uint64_t swap_bits(uint64_t word, int distance, uint64_t low) {
    const uint64_t swap = (word ^ (word >> distance)) & low;
    return word ^ swap ^ (swap << distance);
}

// Writes the metadata of the four rows of tiles, whose row nibbles are the low 16 bits of each choice.
inline void store_tile_metadata(unsigned char* metadata, int64_t stride, LongVec choice, int64_t lanes) {
    typedef uint16_t Nibbles __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES / 4)));
    const Nibbles narrow = __builtin_convertvector(choice, Nibbles);
    uint64_t words[(kTwoFourLanes + 3) / 4] = {};
    std::memcpy(words, &narrow, sizeof(narrow));
    // Four tiles have four nibbles each, which are transposed.
    for (int64_t first = 0; first < lanes; first += 4, metadata += 2) {
        uint64_t word = words[first / 4];
        word = swap_bits(word, 12, 0x0000F0F00000F0F0u);
        word = swap_bits(word, 24, 0x00000000FF00FF00u);
        const bool whole = lanes - first > 2;  // two bytes, not one
        for (int row = 0; row < 4; ++row, word >>= 16) {
            unsigned char* const to = metadata + row * stride;
            to[0] = static_cast<unsigned char>(word);
            if (whole) to[1] = static_cast<unsigned char>(word >> 8);
        }
    }
}

// What a vector of tiles of each row of a strip leaves for the transposed packing: for each of the four
// columns the kept weights, row of tiles by row of tiles, and their nibbles, of which the last are the
// highest.
template <int kSize>
class TransposedTiles {
    // Words of 64 bits that a column of a whole strip fills, of which whole squares are transposed.
    static constexpr int kWords = 2 * kStripTiles * kSize / 8;
    static constexpr int kRounded = kWords < kTwoFourLanes ? kTwoFourLanes : kWords;
    // Rows of tiles that fill a word.
    static constexpr int kTilesInWord = kSize < 4 ? 4 / kSize : 1;

public:
    void add(const Groups<kSize> (&rows)[4], LongVec choice, int64_t tile_row) {
#pragma GCC unroll 4
        for (int column = 0; column < 4; ++column) {
            const KeptPairs<kSize> pairs = keep_column<kSize>(rows, column, choice, 48 + 4 * column);
            if constexpr (kSize == 8) {
                values_[column][2 * tile_row] = pairs.word[0];
                values_[column][2 * tile_row + 1] = pairs.word[1];
            } else {
                LongVec* const to = &values_[column][tile_row / kTilesInWord];
                const int64_t at = tile_row % kTilesInWord;
                *to = at == 0 ? pairs.word[0] : *to | pairs.word[0] << (16 * kSize * at);
            }
            const LongVec nibble = (choice << (44 - 4 * column)) & (uint64_t{15} << 60);
            nibbles_[column] = tile_row == 0 ? nibble : nibbles_[column] >> 4 | nibble;
        }
    }

    void store(const PackedRows& to, int64_t tile, int64_t lanes, int64_t tile_rows) {
        const int64_t value_bytes = 2 * kSize * tile_rows;
        for (int column = 0; column < 4; ++column) {
            const int64_t row = 4 * tile + column;
            const LongVec nibbles = nibbles_[column] >> (4 * (kStripTiles - tile_rows));
            for (int64_t i = 0; i < lanes; ++i) {
                const uint64_t word = nibbles[i];
                store_some(to.metadata + (row + 4 * i) * to.metadata_stride, word, (tile_rows + 1) / 2);
            }
            for (int first = 0; first < kRounded; first += kTwoFourLanes) {
                const int64_t bytes = value_bytes - 8 * first;
                if (bytes <= 0) break;
                unsigned char* const at = to.values + row * to.value_stride + 8 * first;
                store_square(&values_[column][first], at, 4 * to.value_stride, lanes, bytes, to.streamed);
            }
        }
    }

private:
    // Transposes as many words as there are lanes.
    static void store_square(const LongVec* from, unsigned char* to, int64_t stride, int64_t lanes,
                             int64_t bytes, bool streamed) {
        DoubleVec square[kTwoFourLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kTwoFourLanes; ++i) square[i] = bits_as<DoubleVec>(from[i]);
        transpose_square<double>(square);
#pragma GCC unroll 8
        for (int i = 0; i < kTwoFourLanes; ++i) {
            if (i >= lanes) break;
            if (streamed && bytes >= kBytes) {
                stream(to + i * stride, square[i]);
            } else {
                store_some(to + i * stride, square[i], bytes);
            }
        }
    }

    LongVec values_[4][kRounded];
    LongVec nibbles_[4];
};

// Up to a vector of tiles of one row of tiles. `transposed` may be null.
template <WeightType kType>
inline void pack_tile_vector(const TileStrip& strip, int64_t tile_row, int64_t tile, int64_t lanes,
                             NonFinite<kType>& nonfinite,
                             TransposedTiles<WeightTraits<kType>::kSize>* transposed) {
    constexpr int size = WeightTraits<kType>::kSize;
    const unsigned char* const at = strip.weight + 4 * (tile_row * strip.stride + tile * size);
    const WholeGroups<size> groups(at, strip.stride, 4, lanes);
    Groups<size> rows[4];
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
        rows[row] = Groups<size>::load(groups.from + row * groups.stride);
        nonfinite.look_at(rows[row]);
    }
    LongVec choice = select_tiles([&](int row, int column) { return magnitude<kType>(rows[row], column); });
    if (lanes < kTwoFourLanes) choice &= first_lanes(lanes);
    const PackedRows& packed = strip.packed;
    unsigned char* const values = packed.values + 4 * tile_row * packed.value_stride + 2 * size * tile;
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
        store_pairs<size>(values + row * packed.value_stride, keep<size>(rows[row], choice, 32 + 4 * row),
                          lanes);
    }
    store_tile_metadata(packed.metadata + 4 * tile_row * packed.metadata_stride + tile / 2,
                        packed.metadata_stride, choice, lanes);
    if (transposed != nullptr) transposed->add(rows, choice, tile_row);
}

template <WeightType kType>
bool pack_tiles(const TileStrip& given) {
    using Transposed = TransposedTiles<WeightTraits<kType>::kSize>;
    const TileStrip strip = given;
    auto* const transposed = reinterpret_cast<Transposed*>(strip.scratch);
    const int64_t whole = strip.tiles / kTwoFourLanes, rest = strip.tiles % kTwoFourLanes;
    NonFinite<kType> nonfinite;
    // Row by row, since memory is read ahead where few streams are read.
    for (int64_t tile_row = 0; tile_row < strip.tile_rows; ++tile_row) {
        for (int64_t i = 0; i < whole; ++i) {
            pack_tile_vector<kType>(strip, tile_row, i * kTwoFourLanes, kTwoFourLanes, nonfinite,
                                    transposed == nullptr ? nullptr : transposed + i);
        }
        if (rest > 0) {
            pack_tile_vector<kType>(strip, tile_row, whole * kTwoFourLanes, rest, nonfinite,
                                    transposed == nullptr ? nullptr : transposed + whole);
        }
    }
    if (transposed == nullptr) return nonfinite.none();
    for (int64_t i = 0; i < whole; ++i) {
        transposed[i].store(strip.transposed, i * kTwoFourLanes, kTwoFourLanes, strip.tile_rows);
    }
    if (rest > 0) transposed[whole].store(strip.transposed, whole * kTwoFourLanes, rest, strip.tile_rows);
    if (strip.transposed.streamed) end_streams();
    return nonfinite.none();
}

// The kept of each group as four bits; see select_pair.
template <WeightType kType>
inline LongVec select_groups(const Groups<WeightTraits<kType>::kSize>& groups) {
    const DoubleVec a = magnitude<kType>(groups, 0), b = magnitude<kType>(groups, 1);
    const DoubleVec c = magnitude<kType>(groups, 2), d = magnitude<kType>(groups, 3);
    const LongVec ab = (LongVec)(a >= b), ac = (LongVec)(a >= c), ad = (LongVec)(a >= d);
    const LongVec bc = (LongVec)(b >= c), bd = (LongVec)(b >= d), cd = (LongVec)(c >= d);
    const LongVec first = (ab & ac) | (ab & ad) | (ac & ad);
    const LongVec second = (~ab & bc) | (~ab & bd) | (bc & bd);
    const LongVec third = (~ac & ~bc) | (~ac & cd) | (~bc & cd);
    const LongVec fourth = ~(ad & bd) & ~(ad & cd) & ~(bd & cd);
    return (first & 1u) | (second & 2u) | (third & 4u) | (fourth & 8u);
}

// The nibbles of kept bits; see nibbles_of_bits.
inline LongVec nibbles_of(LongVec kept) {
    const LongVec k1 = kept >> 1, k2 = kept >> 2, k3 = kept >> 3;
    const LongVec low = (k1 & ~kept & 1u) | (~(kept | k1) & 1u) << 1;
    return low | ((k3 | ~k2) & 1u) << 2 | ((k2 | k3) & 1u) << 3;
}

// The lanes' nibbles one after another.
inline uint64_t join_nibbles(LongVec nibbles) {
    typedef uint8_t Bytes __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES / 8)));
    const Bytes bytes = __builtin_convertvector(nibbles, Bytes);
    uint64_t word = 0;
    std::memcpy(&word, &bytes, sizeof(bytes));
    word = (word | word >> 4) & 0x00FF00FF00FF00FFu;
    word = (word | word >> 8) & 0x0000FFFF0000FFFFu;
    return word | word >> 16;
}

// Up to a vector of groups.
template <WeightType kType>
inline void pack_group_vector(const unsigned char* weight, unsigned char* values, unsigned char* metadata,
                              int64_t lanes, NonFinite<kType>& nonfinite) {
    constexpr int size = WeightTraits<kType>::kSize;
    const WholeGroups<size> whole(weight, 0, 1, lanes);
    const Groups<size> groups = Groups<size>::load(whole.from);
    nonfinite.look_at(groups);
    const LongVec kept = select_groups<kType>(groups);
    store_pairs<size>(values, keep<size>(groups, kept, 0), lanes);
    LongVec nibbles = nibbles_of(kept);
    if (lanes < kTwoFourLanes) nibbles &= first_lanes(lanes);
    uint64_t word = join_nibbles(nibbles);
    for (int64_t byte = 0; byte < (lanes + 1) / 2; ++byte, word >>= 8) {
        metadata[byte] = static_cast<unsigned char>(word);
    }
}

template <WeightType kType>
bool pack_rows(const GroupRows& given) {
    constexpr int size = WeightTraits<kType>::kSize;
    const GroupRows block = given;
    NonFinite<kType> nonfinite;
    for (int64_t row = 0; row < block.rows; ++row) {
        const unsigned char* weight = block.weight + row * block.stride;
        unsigned char* values = block.packed.values + row * block.packed.value_stride;
        unsigned char* metadata = block.packed.metadata + row * block.packed.metadata_stride;
        int64_t left = block.groups;
        for (; left >= kTwoFourLanes; left -= kTwoFourLanes) {
            pack_group_vector<kType>(weight, values, metadata, kTwoFourLanes, nonfinite);
            weight += 4 * size * kTwoFourLanes;
            values += 2 * size * kTwoFourLanes;
            metadata += kTwoFourLanes / 2;
        }
        if (left > 0) pack_group_vector<kType>(weight, values, metadata, left, nonfinite);
    }
    return nonfinite.none();
}

}  // namespace

PackTwoFour pack_two_four_kernels() {
    return {{pack_tiles<WeightType::float16>, pack_tiles<WeightType::bfloat16>,
             pack_tiles<WeightType::float32>, pack_tiles<WeightType::float64>, pack_tiles<WeightType::int8>},
            {pack_rows<WeightType::float16>, pack_rows<WeightType::bfloat16>, pack_rows<WeightType::float32>,
             pack_rows<WeightType::float64>, pack_rows<WeightType::int8>}};
}

}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
