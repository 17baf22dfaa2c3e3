// Groups of four weights in the lanes of vectors, side by side. A lane has 64 bits: a group of weights of one
// or two bytes is one lane of one vector, of larger weights the same lane of two or four vectors ("words").

#include "sparsekern/two_four.h"
#include "vec.h"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

constexpr int kTwoFourLanes = static_cast<int>(kLanes<double>);

template <int kSize>
constexpr int kGroupWords = kSize == 8   ? 4
                            : kSize == 4 ? 2
                                         : 1;
// Words of two kept weights.
template <int kSize>
constexpr int kKeptWords = kSize == 8 ? 2 : 1;
// The bits of one weight, from bit 0 on.
template <int kSize>
constexpr uint64_t kWeightBits = ~uint64_t{0} >> (64 - 8 * kSize);

// How a weight's magnitude becomes float64 (see scaled_magnitude), and what its infinity is.
template <WeightType kType>
struct WeightTraits;
template <>
struct WeightTraits<WeightType::float16> {
    static constexpr int kSize = 2, kMantissa = 10;
    typedef uint16_t Vector __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES)));
};
template <>
struct WeightTraits<WeightType::bfloat16> {
    static constexpr int kSize = 2, kMantissa = 7;
    typedef uint16_t Vector __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES)));
};
template <>
struct WeightTraits<WeightType::float32> {
    static constexpr int kSize = 4, kMantissa = 23;
    typedef uint32_t Vector __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES)));
};
template <>
struct WeightTraits<WeightType::float64> {
    static constexpr int kSize = 8, kMantissa = 52;
    typedef uint64_t Vector __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES)));
};
template <>
struct WeightTraits<WeightType::int8> {
    static constexpr int kSize = 1;
    typedef int8_t Vector __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES)));
};

// Of each two neighbouring words the first, or the second.
#if SPARSEKERN_VECTOR_BYTES == 64
#define SPARSEKERN_EVEN_WORDS 0, 2, 4, 6, 8, 10, 12, 14
#define SPARSEKERN_ODD_WORDS 1, 3, 5, 7, 9, 11, 13, 15
#elif SPARSEKERN_VECTOR_BYTES == 32
#define SPARSEKERN_EVEN_WORDS 0, 2, 4, 6
#define SPARSEKERN_ODD_WORDS 1, 3, 5, 7
#else
#define SPARSEKERN_EVEN_WORDS 0, 2
#define SPARSEKERN_ODD_WORDS 1, 3
#endif
inline LongVec even_words(LongVec a, LongVec b) {
    using IndexVec [[maybe_unused]] = LongVec;
    return SPARSEKERN_SHUFFLE(a, b, SPARSEKERN_EVEN_WORDS);
}
inline LongVec odd_words(LongVec a, LongVec b) {
    using IndexVec [[maybe_unused]] = LongVec;
    return SPARSEKERN_SHUFFLE(a, b, SPARSEKERN_ODD_WORDS);
}

template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline LongVec load_words(const unsigned char* from) {
    LongVec words;
    std::memcpy(&words, from, sizeof(words));
    return words;
}

// The word's bits from bit `from` on, moved to bit `to`; what comes along is for the caller to mask.
inline LongVec move_bits(LongVec words, int from, int to) {
    return to > from ? words << (to - from) : words >> (from - to);
}

// One group for each lane.
template <int kSize>
struct Groups {
    LongVec word[kGroupWords<kSize>];

    static Groups load(const unsigned char* from) {
        Groups groups;
        if constexpr (kSize == 1) {
            typedef uint32_t HalfLongs __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES / 2)));
            HalfLongs halves;
            std::memcpy(&halves, from, sizeof(halves));
            groups.word[0] = __builtin_convertvector(halves, LongVec);
        } else if constexpr (kSize == 2) {
            groups.word[0] = load_words(from);
        } else if constexpr (kSize == 4) {
            const LongVec a = load_words(from), b = load_words(from + kBytes);
            groups.word[0] = even_words(a, b);
            groups.word[1] = odd_words(a, b);
        } else {
            const LongVec a = load_words(from), b = load_words(from + kBytes);
            const LongVec c = load_words(from + 2 * kBytes), d = load_words(from + 3 * kBytes);
            const LongVec even_ab = even_words(a, b), even_cd = even_words(c, d);
            const LongVec odd_ab = odd_words(a, b), odd_cd = odd_words(c, d);
            groups.word[0] = even_words(even_ab, even_cd);
            groups.word[1] = even_words(odd_ab, odd_cd);
            groups.word[2] = odd_words(even_ab, even_cd);
            groups.word[3] = odd_words(odd_ab, odd_cd);
        }
        return groups;
    }
};

// Bit 8 * kSize * column of a group, as a word and a bit in it.
template <int kSize>
constexpr int word_of(int column) {
    return column * kSize / 8;
}
template <int kSize>
constexpr int bit_of(int column) {
    return column * kSize % 8 * 8;
}

template <WeightType kType>
inline DoubleVec magnitude(const Groups<WeightTraits<kType>::kSize>& groups, int column) {
    using Traits = WeightTraits<kType>;
    constexpr int size = Traits::kSize;
    const LongVec word = groups.word[word_of<size>(column)];
    if constexpr (kType == WeightType::int8) {
        const auto bytes = bits_as<typename Traits::Vector>(word);
        const auto negative = bytes < 0;
        const LongVec absolute = bits_as<LongVec>((bytes ^ negative) - negative);
        const LongVec whole = (absolute >> bit_of<1>(column)) & 0xFFu;
        // The last bits of 2^52 count ones.
        return bits_as<DoubleVec>(whole | 0x4330000000000000u) - 0x1p52;
    } else {
        constexpr int to = 52 - Traits::kMantissa;
        const LongVec moved = move_bits(word, bit_of<size>(column), to);
        return bits_as<DoubleVec>(moved & (kWeightBits<size> >> 1 << to));
    }
}

// Which weights have been seen to be infinite or NaN. Their exponent is all ones, so that one more carries
// into the place of the sign.
template <WeightType kType>
class NonFinite {
    using Traits = WeightTraits<kType>;
    using Vector = typename Traits::Vector;

public:
    void look_at(const Groups<Traits::kSize>& groups) {
        if constexpr (kType != WeightType::int8) {
            using Weight = std::remove_reference_t<decltype(Vector{}[0])>;
            constexpr Weight magnitude = static_cast<Weight>(kWeightBits<Traits::kSize> >> 1);
            constexpr Weight one = static_cast<Weight>(uint64_t{1} << Traits::kMantissa);
#pragma GCC unroll 4
            for (const LongVec word : groups.word) seen_ |= (bits_as<Vector>(word) & magnitude) + one;
        }
    }
    bool none() const {
        LongVec any = bits_as<LongVec>(seen_);
        uint64_t lanes = 0;
        for (int i = 0; i < kTwoFourLanes; ++i) lanes |= any[i];
        uint64_t signs = 0;
        for (int bit = 8 * Traits::kSize - 1; bit < 64; bit += 8 * Traits::kSize) signs |= uint64_t{1} << bit;
        return kType == WeightType::int8 || (lanes & signs) == 0;
    }

private:
    Vector seen_ = {};
};

// Two kept weights for each lane, the first in the low bits; of eight bytes each, in two words.
template <int kSize>
struct KeptPairs {
    LongVec word[kKeptWords<kSize>];
};

// Lane by lane a, b or c: the first whose bit in `bits` is set, c where neither is.
inline LongVec first_of(LongVec bits, uint64_t bit_a, LongVec a, uint64_t bit_b, LongVec b, LongVec c) {
    return (bits & bit_a) != 0 ? a : (bits & bit_b) != 0 ? b : c;
}

// The two that bits `base` .. `base` + 3 of `kept` name.
template <int kSize>
inline KeptPairs<kSize> keep(const Groups<kSize>& groups, LongVec kept, int base) {
    const uint64_t k0 = uint64_t{1} << base, k1 = k0 << 1, k2 = k0 << 2, k3 = k0 << 3;
    const LongVec* const w = groups.word;
    constexpr uint64_t low = kWeightBits<kSize>;
    constexpr int bits = 8 * kSize;
    if constexpr (kSize == 8) {
        return {{first_of(kept, k0, w[0], k1, w[1], w[2]), first_of(kept, k3, w[3], k2, w[2], w[1])}};
    } else if constexpr (kSize == 4) {
        const LongVec first = first_of(kept, k0, w[0], k1, w[0] >> bits, w[1]);
        const LongVec second = first_of(kept, k3, w[1], k2, w[1] << bits, w[0]);
        return {{(first & low) | (second & (low << bits))}};
    } else {
        const LongVec one = w[0] >> bits, two = w[0] >> 2 * bits;
        const LongVec first = first_of(kept, k0, w[0], k1, one, two);
        const LongVec second = first_of(kept, k3, two, k2, one, w[0]);
        return {{(first & low) | (second & (low << bits))}};
    }
}

// The same for the column of a tile, whose four rows are given.
template <int kSize>
inline KeptPairs<kSize> keep_column(const Groups<kSize> (&rows)[4], int column, LongVec kept, int base) {
    const uint64_t k0 = uint64_t{1} << base, k1 = k0 << 1, k2 = k0 << 2, k3 = k0 << 3;
    const int at = word_of<kSize>(column), bit = bit_of<kSize>(column);
    const LongVec first = first_of(kept, k0, rows[0].word[at], k1, rows[1].word[at], rows[2].word[at]);
    const LongVec second = first_of(kept, k3, rows[3].word[at], k2, rows[2].word[at], rows[1].word[at]);
    if constexpr (kSize == 8) {
        return {{first, second}};
    } else {
        constexpr uint64_t low = kWeightBits<kSize>;
        constexpr int bits = 8 * kSize;
        return {{(move_bits(first, bit, 0) & low) | (move_bits(second, bit, bits) & (low << bits))}};
    }
}

// Writes the first bytes of what is given, all where `bytes` is larger.
template <class Words>
inline void store_some(unsigned char* to, const Words& words, int64_t bytes) {
    if (bytes >= static_cast<int64_t>(sizeof(words))) {
        std::memcpy(to, &words, sizeof(words));
    } else {
        std::memcpy(to, &words, static_cast<size_t>(bytes));
    }
}

// Writes the pairs of the first `lanes` lanes.
template <int kSize>
inline void store_pairs(unsigned char* to, const KeptPairs<kSize>& pairs, int64_t lanes) {
    const int64_t bytes = 2 * kSize * lanes;
    if constexpr (kSize == 8) {
        struct Both {
            DoubleVec low, high;
        };
        const DoubleVec first = bits_as<DoubleVec>(pairs.word[0]), second = bits_as<DoubleVec>(pairs.word[1]);
        store_some(to, Both{interleave_low(first, second), interleave_high(first, second)}, bytes);
    } else if constexpr (kSize == 4) {
        store_some(to, pairs.word[0], bytes);
    } else if constexpr (kSize == 2) {
        typedef uint32_t Packed __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES / 2)));
        store_some(to, __builtin_convertvector(pairs.word[0], Packed), bytes);
    } else {
        typedef uint16_t Packed __attribute__((vector_size(SPARSEKERN_VECTOR_BYTES / 4)));
        store_some(to, __builtin_convertvector(pairs.word[0], Packed), bytes);
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
