// The parts of the extension module; each adds its functions to `module`.
#pragma once

#include <pybind11/pybind11.h>

void bind_pattern(pybind11::module_& module);
void bind_compute(pybind11::module_& module);
void bind_grow_candidates(pybind11::module_& module);
void bind_two_four(pybind11::module_& module);
void bind_two_four_linear(pybind11::module_& module);
void bind_cuda(pybind11::module_& module);
