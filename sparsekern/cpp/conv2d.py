"""The products of a convolution, on `_C`."""

from __future__ import annotations

import functools

from torch import Tensor

from sparsekern.cpp.memory import DTYPES, buffer, contiguous
from sparsekern.cpp.values import compact, nnz_of, unpack
from sparsekern.geometry import Sizes, conv2d_output_size
from sparsekern.native import _C, threads


def convolution_of(size: Sizes, shape: Sizes, geometry: Sizes) -> tuple[_C.Conv2dShape, tuple[int, ...]]:
    """The convolution of an input of `size` as the extension takes it, and the size of its output."""
    return _known_convolution(tuple(size), tuple(shape), tuple(geometry))


# A layer is called with a few sizes, again and again.
@functools.lru_cache(maxsize=1024)
def _known_convolution(
    size: tuple[int, ...], shape: tuple[int, ...], geometry: tuple[int, ...]
) -> tuple[_C.Conv2dShape, tuple[int, ...]]:
    batch, _, height, width = size
    *strides, groups = geometry
    convolution = _C.Conv2dShape(batch, groups, height, width, *strides)
    return convolution, conv2d_output_size(size, shape, geometry)


def conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: Sizes, geometry: Sizes
) -> Tensor:
    convolution, out = convolution_of(x.shape, shape, geometry)
    weight = compact(values, pattern)
    x = contiguous(x)
    bias = None if bias is None else contiguous(bias)
    y = x.new_empty(out)
    _C.conv2d(
        DTYPES[x.dtype],
        *buffer(pattern),
        convolution,
        *buffer(weight),
        *buffer(x),
        *buffer(bias),
        *buffer(y),
        threads(),
    )
    return y


def conv2d_grad_input(
    grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sizes, input_size: Sizes, geometry: Sizes
) -> Tensor:
    convolution, _ = convolution_of(input_size, shape, geometry)
    weight = compact(values, pattern)
    grad_y = contiguous(grad_y)
    grad_x = grad_y.new_empty(input_size)
    _C.conv2d_grad_input(
        DTYPES[grad_y.dtype],
        *buffer(pattern),
        convolution,
        *buffer(weight),
        *buffer(grad_y),
        *buffer(grad_x),
        threads(),
    )
    return grad_x


def conv2d_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, values_shape: Sizes, geometry: Sizes
) -> Tensor:
    convolution, _ = convolution_of(x.shape, shape, geometry)
    nnz = values_shape[0] if len(values_shape) == 1 else nnz_of(pattern)
    grad_y, x = contiguous(grad_y), contiguous(x)
    grad_values = x.new_empty(nnz)
    _C.conv2d_grad_values(
        DTYPES[x.dtype],
        *buffer(pattern),
        convolution,
        *buffer(grad_y),
        *buffer(x),
        *buffer(grad_values),
        threads(),
    )
    return grad_values if len(values_shape) == 1 else unpack(grad_values, pattern, values_shape)
