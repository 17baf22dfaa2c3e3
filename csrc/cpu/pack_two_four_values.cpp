// Values at the places that 2:4 metadata names: gathering, unpacking, and the check of metadata.
#include <omp.h>

#include <algorithm>

#include "element_size.h"
#include "pack_two_four_check.h"
#include "panels.h"
#include "sparsekern/pack_two_four.h"

namespace sparsekern {
namespace {

// Calls visit(row, group, nibble) for all groups; each thread takes one run of rows.
template <class Visit>
void for_each_group(TwoFourShape shape, const unsigned char* metadata, int threads, const Visit& visit) {
    const int64_t groups = shape.columns / kGroupSize, stride = metadata_bytes(shape.columns);
    threads = worthwhile_threads(threads, 0, static_cast<double>(shape.rows * shape.columns));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < shape.rows; ++row) {
        const unsigned char* const byte = metadata + row * stride;
        for (int64_t group = 0; group + 2 <= groups; group += 2) {
            visit(row, group, byte[group / 2] & 15u);
            visit(row, group + 1, byte[group / 2] >> 4);
        }
        if (groups % 2 != 0) visit(row, groups - 1, byte[groups / 2] & 15u);
    }
}

}  // namespace

void gather_two_four(int64_t element_size, TwoFourShape shape, InputValues dense,
                     const unsigned char* metadata, int64_t metadata_count, OutputValues values,
                     int threads) {
    check_threads(threads);
    check_element_size(element_size);
    check_shape(shape, false);
    check_values("dense", dense, shape.rows * shape.columns, element_size);
    check_metadata_count("metadata", metadata, metadata_count, shape);
    check_values("values", values, shape.rows * (shape.columns / 2), element_size);
    if (shape.columns == 0) return;
    with_element_size(element_size, [&](auto zero) {
        using Element = decltype(zero);
        const auto* const from = static_cast<const Element*>(dense.data);
        auto* const to = static_cast<Element*>(values.data);
        for_each_group(shape, metadata, threads, [=](int64_t row, int64_t group, uint32_t nibble) {
            const int64_t first = row * shape.columns + kGroupSize * group;
            const Element pair[] = {from[first + (nibble & 3u)], from[first + (nibble >> 2)]};
            std::memcpy(to + first / 2, pair, sizeof(pair));
        });
    });
}

void unpack_two_four(int64_t element_size, TwoFourShape shape, InputPacking packed, OutputValues dense,
                     int threads) {
    check_threads(threads);
    check_element_size(element_size);
    check_shape(shape, false);
    check_packing("values", "metadata", packed, shape, element_size);
    check_values("dense", dense, shape.rows * shape.columns, element_size);
    if (shape.columns == 0) return;
    with_element_size(element_size, [&](auto zero) {
        using Element = decltype(zero);
        const auto* const from = static_cast<const Element*>(packed.values.data);
        auto* const to = static_cast<Element*>(dense.data);
        for_each_group(shape, packed.metadata, threads, [=](int64_t row, int64_t group, uint32_t nibble) {
            const int64_t first = row * shape.columns + kGroupSize * group;
            // Not put together on the stack, where bytes written one by one are slow to read as a whole.
            std::fill(to + first, to + first + kGroupSize, Element{0});
            to[first + (nibble & 3u)] = from[first / 2];
            to[first + (nibble >> 2)] = from[first / 2 + 1];
        });
    });
}

void check_metadata(TwoFourShape shape, const unsigned char* metadata, int64_t metadata_count) {
    check_shape(shape, false);
    check_metadata_count("metadata", metadata, metadata_count, shape);
    if (shape.columns == 0) return;
    const int64_t groups = shape.columns / kGroupSize, stride = metadata_bytes(shape.columns);
    for (int64_t row = 0; row < shape.rows; ++row) {
        const unsigned char* const byte = metadata + row * stride;
        for (int64_t group = 0; group < groups; ++group) {
            const uint32_t nibble = byte[group / 2] >> (group % 2 * 4) & 15u;
            if (is_pair_nibble(nibble)) continue;
            throw std::invalid_argument("metadata: expected two ascending columns for each group, got " +
                                        std::to_string(nibble & 3u) + " and " + std::to_string(nibble >> 2) +
                                        " in row " + std::to_string(row) + ", group " +
                                        std::to_string(group));
        }
        if (groups % 2 != 0 && byte[groups / 2] >> 4 != 0) {
            throw std::invalid_argument("metadata: expected 0 behind the last group of a row, got " +
                                        std::to_string(byte[groups / 2] >> 4) + " in row " +
                                        std::to_string(row));
        }
    }
}

}  // namespace sparsekern
