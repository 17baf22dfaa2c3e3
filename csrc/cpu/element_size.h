// The choice of a type by the size of an element: values are copied bit for bit.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace sparsekern {

// Throws unless elements of that many bytes can be copied.
inline void check_element_size(int64_t element_size) {
    if (element_size == 1 || element_size == 2 || element_size == 4 || element_size == 8) return;
    throw std::invalid_argument("element size must be 1, 2, 4 or 8 bytes, got " +
                                std::to_string(element_size));
}

// Calls `copy` with a value of the unsigned type of that many bytes, which has been checked.
template <typename Copy>
void with_element_size(int64_t element_size, const Copy& copy) {
    switch (element_size) {
        case 1:
            return copy(uint8_t());
        case 2:
            return copy(uint16_t());
        case 4:
            return copy(uint32_t());
        default:
            return copy(uint64_t());
    }
}

}  // namespace sparsekern
