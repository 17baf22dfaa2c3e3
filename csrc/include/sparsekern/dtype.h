// The element types that kernels read and write, and the type each accumulates in.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace sparsekern {

enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2 };

constexpr int64_t element_bytes(DType dtype) {
    return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// A bfloat16 as stored: the upper half of a float32.
struct BFloat16 {
    uint16_t bits;
};

// The type that sums of products of T are held in.
template <class T>
struct Accumulate {
    using type = T;
};
template <>
struct Accumulate<BFloat16> {
    using type = float;
};
template <class T>
using AccumulateType = typename Accumulate<T>::type;

// Calls `body` with a null pointer of the type that `dtype` names, so that one generic lambda serves all.
template <class Body>
void dispatch(DType dtype, Body&& body) {
    switch (dtype) {
        case DType::float32:
            return body(static_cast<float*>(nullptr));
        case DType::float64:
            return body(static_cast<double*>(nullptr));
        case DType::bfloat16:
            return body(static_cast<BFloat16*>(nullptr));
    }
    throw std::invalid_argument("dtype: expected float32, float64 or bfloat16");
}

}  // namespace sparsekern
