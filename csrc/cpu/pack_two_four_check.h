// Checks of what the entry points of 2:4 packing are handed.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "check.h"
#include "sparsekern/pack_two_four.h"

namespace sparsekern {

inline int64_t weight_bytes(WeightType type) {
    switch (type) {
        case WeightType::float16:
        case WeightType::bfloat16:
            return 2;
        case WeightType::float32:
            return 4;
        case WeightType::float64:
            return 8;
        case WeightType::int8:
            return 1;
    }
    throw std::invalid_argument(
        "type: expected 0 (float16), 1 (bfloat16), 2 (float32), 3 (float64) or 4 (int8), got " +
        std::to_string(static_cast<int>(type)));
}

inline void check_multiple(const char* what, int64_t size, int64_t multiple) {
    if (size >= 0 && size % multiple == 0) return;
    throw std::invalid_argument(std::string(what) + ": expected a multiple of " + std::to_string(multiple) +
                                ", got " + std::to_string(size));
}

// Groups cut the columns, and tiles the rows too.
inline void check_shape(TwoFourShape shape, bool tiles) {
    check_multiple("rows", shape.rows, tiles ? 4 : 1);
    check_multiple("columns", shape.columns, 4);
    if (shape.rows > kMostElements || shape.columns > kMostElements ||
        static_cast<__int128>(shape.rows) * shape.columns > kMostElements) {
        throw std::invalid_argument("rows and columns: " + std::to_string(shape.rows) + " by " +
                                    std::to_string(shape.columns) + " is beyond any memory");
    }
}

inline void check_metadata_count(const char* name, const unsigned char* metadata, int64_t count,
                                 TwoFourShape shape) {
    check_equal(name, "bytes", shape.rows * metadata_bytes(shape.columns), count);
    check_address(name, metadata, count, 1);
}

template <class Packing>
void check_packing(const char* values, const char* metadata, const Packing& packing, TwoFourShape shape,
                   int64_t element_bytes) {
    check_values(values, packing.values, shape.rows * (shape.columns / 2), element_bytes);
    check_metadata_count(metadata, packing.metadata, packing.metadata_count, shape);
}

}  // namespace sparsekern
