// What the parts of sparsekern._C.cuda share.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "sparsekern/cuda_status.h"

// Adds the functions for 2:4 weights to the submodule.
void bind_cuda_two_four(pybind11::module_& cuda);

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

inline void check(const char* what, int64_t expected, int64_t got) {
    if (expected == got) return;
    throw pybind11::value_error(std::string(what) + ": expected " + std::to_string(expected) + ", got " +
                                std::to_string(got));
}

inline void require_ok(sparsekern::cuda::Status status) {
    if (status != sparsekern::cuda::Status::ok) {
        throw std::runtime_error(sparsekern::cuda::status_message(status));
    }
}
