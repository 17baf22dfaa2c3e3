// The layout of 2:4 weights that CUTLASS's kernels read.
#include <omp.h>

#include <algorithm>

#include "element_size.h"
#include "pack_two_four_check.h"
#include "panels.h"
#include "sparsekern/pack_two_four.h"

namespace sparsekern {
namespace {

// How a size of element is laid out: rows change places within `row_multiple`, and a word of metadata has
// `word_bytes` bytes.
struct CutlassLayout {
    int64_t row_multiple;
    int64_t column_multiple;
    int64_t word_bytes;
    int64_t interleaved;  // rows that are dealt out to neighbouring places
};

CutlassLayout cutlass_layout(int64_t element_size) {
    if (element_size == 2) return {32, 64, 2, 4};
    if (element_size == 1) return {16, 128, 4, 2};
    throw std::invalid_argument("element size: expected 1 or 2 bytes, got " + std::to_string(element_size));
}

// The nibble that CUTLASS's packing has for a group, by which of its weights are nonzero: bit c for column c.
constexpr uint32_t cutlass_nibble(uint32_t nonzero) {
    const bool m0 = nonzero & 1u, m1 = nonzero & 2u, m3 = nonzero & 8u;
    const bool both = m0 && m1, second = !m0 && m1, neither = !m0 && !m1;
    return static_cast<uint32_t>(second) | static_cast<uint32_t>(neither) << 1 |
           static_cast<uint32_t>(both || neither || m3) << 2 | static_cast<uint32_t>(second || !m1) << 3;
}

struct CutlassNibbles {
    unsigned char of[16] = {};
    constexpr CutlassNibbles() {
        for (uint32_t nonzero = 0; nonzero < 16; ++nonzero) {
            of[nonzero] = static_cast<unsigned char>(cutlass_nibble(nonzero));
        }
    }
};
constexpr CutlassNibbles kCutlassNibbles;

// Where the word of metadata of a row and column of words lies among all: rows are dealt out within a group
// of them, squares of two by two words are turned, and pairs of columns are stored one after another.
int64_t word_place(const CutlassLayout& layout, int64_t rows, int64_t row, int64_t column) {
    const int64_t within = row % layout.row_multiple;
    int64_t to_row = row - within + row % 8 * layout.interleaved + within / 8;
    int64_t to_column = column;
    if (to_row % 2 == 0 && column % 2 == 1) {
        to_row += 1;
        to_column -= 1;
    } else if (to_row % 2 == 1 && column % 2 == 0) {
        to_row -= 1;
        to_column += 1;
    }
    return to_column / 2 * rows * 2 + to_row * 2 + to_column % 2;
}

void check_cutlass_multiple(const char* what, int64_t size, int64_t multiple, int64_t element_size) {
    if (size % multiple == 0) return;
    const int64_t below = size / multiple * multiple, above = below + multiple;
    throw std::invalid_argument(
        std::string(what) + ": CUTLASS's layout needs a multiple of " + std::to_string(multiple) +
        " for elements of " + std::to_string(element_size) + (element_size == 1 ? " byte" : " bytes") +
        ", got " + std::to_string(size) + "; the nearest are " +
        (below > 0 ? std::to_string(below) + " and " : std::string()) + std::to_string(above));
}

CutlassLayout check_cutlass(int64_t element_size, TwoFourShape shape, const InputPacking& from,
                            const OutputPacking& to, int threads) {
    check_threads(threads);
    const CutlassLayout layout = cutlass_layout(element_size);
    check_shape(shape, false);
    check_cutlass_multiple("rows", shape.rows, layout.row_multiple, element_size);
    check_cutlass_multiple("columns", shape.columns, layout.column_multiple, element_size);
    check_packing("values", "metadata", from, shape, element_size);
    check_packing("result values", "result metadata", to, shape, element_size);
    return layout;
}

// One row in CUTLASS's choice of places. Of floating-point weights, -0.0 is no nonzero either.
template <class Element>
void choose_places(const Element* values, const unsigned char* metadata, int64_t columns, Element* to,
                   unsigned char* to_metadata) {
    constexpr Element magnitude = sizeof(Element) == 1 ? 0xFF : 0x7FFF;
    for (int64_t group = 0; group < columns / kGroupSize; ++group) {
        const uint32_t nibble = metadata[group / 2] >> (group % 2 * 4) & 15u;
        Element whole[kGroupSize] = {};
        whole[nibble & 3u] = values[2 * group];
        whole[nibble >> 2] = values[2 * group + 1];
        uint32_t nonzero = 0;
        for (int c = 0; c < kGroupSize; ++c) {
            nonzero |= static_cast<uint32_t>((whole[c] & magnitude) != 0) << c;
        }
        const uint32_t chosen = kCutlassNibbles.of[nonzero];
        to[2 * group] = whole[chosen & 3u];
        to[2 * group + 1] = whole[chosen >> 2];
        unsigned char* const byte = to_metadata + group / 2;
        *byte = static_cast<unsigned char>(group % 2 == 0 ? chosen : *byte | chosen << 4);
    }
}

}  // namespace

void to_cutlass(int64_t element_size, TwoFourShape shape, InputPacking packed, OutputPacking cutlass,
                int threads) {
    const CutlassLayout layout = check_cutlass(element_size, shape, packed, cutlass, threads);
    if (shape.columns == 0) return;
    const int64_t words = shape.columns / 8 / layout.word_bytes;
    threads = worthwhile_threads(threads, 0, static_cast<double>(shape.rows * shape.columns));
    with_element_size(element_size, [&](auto zero) {
        using Element = decltype(zero);
        if constexpr (sizeof(Element) <= 2) {
            const auto* const from = static_cast<const Element*>(packed.values.data);
            auto* const to = static_cast<Element*>(cutlass.values.data);
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t row = 0; row < shape.rows; ++row) {
                const int64_t first = row * (shape.columns / 2);
                // One word at a time, which is then put in its place.
                for (int64_t word = 0; word < words; ++word) {
                    const int64_t columns = 8 * layout.word_bytes;
                    unsigned char chosen[4];
                    choose_places(from + first + word * columns / 2,
                                  packed.metadata + row * (shape.columns / 8) + word * layout.word_bytes,
                                  columns, to + first + word * columns / 2, chosen);
                    const int64_t place = word_place(layout, shape.rows, row, word);
                    std::memcpy(cutlass.metadata + place * layout.word_bytes, chosen,
                                static_cast<size_t>(layout.word_bytes));
                }
            }
        }
    });
}

void from_cutlass(int64_t element_size, TwoFourShape shape, InputPacking cutlass, OutputPacking packed,
                  int threads) {
    const CutlassLayout layout = check_cutlass(element_size, shape, cutlass, packed, threads);
    if (shape.columns == 0) return;
    const int64_t words = shape.columns / 8 / layout.word_bytes;
    const int64_t row_bytes = shape.columns / 2 * element_size;
    const auto* const from = static_cast<const unsigned char*>(cutlass.values.data);
    auto* const to = static_cast<unsigned char*>(packed.values.data);
    threads = worthwhile_threads(threads, 0, static_cast<double>(shape.rows * shape.columns));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < shape.rows; ++row) {
        std::memcpy(to + row * row_bytes, from + row * row_bytes, static_cast<size_t>(row_bytes));
        for (int64_t word = 0; word < words; ++word) {
            const int64_t place = word_place(layout, shape.rows, row, word);
            std::memcpy(packed.metadata + (row * words + word) * layout.word_bytes,
                        cutlass.metadata + place * layout.word_bytes, static_cast<size_t>(layout.word_bytes));
        }
    }
}

}  // namespace sparsekern
