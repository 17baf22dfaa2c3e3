"""The products of a linear layer, on `_C`."""

from __future__ import annotations

from torch import Tensor

from sparsekern.cpp.memory import DTYPES, buffer, contiguous, matrix
from sparsekern.cpp.values import compact, nnz_of, unpack
from sparsekern.geometry import Sizes
from sparsekern.native import _C, threads


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: Sizes) -> Tensor:
    rows, columns = shape
    weight = compact(values, pattern)
    bias = None if bias is None else contiguous(bias)
    y = x.new_empty((*x.shape[:-1], rows))
    rows_of_x, _owner = matrix(x, columns)
    _C.linear(
        DTYPES[x.dtype], *buffer(pattern), *buffer(weight), *rows_of_x, *buffer(bias), *buffer(y), threads()
    )
    return y


def linear_grad_input(grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sizes) -> Tensor:
    rows, columns = shape
    weight = compact(values, pattern)
    grad_x = grad_y.new_empty((*grad_y.shape[:-1], columns))
    rows_of_grad, _owner = matrix(grad_y, rows)
    _C.linear_grad_input(
        DTYPES[grad_y.dtype], *buffer(pattern), *buffer(weight), *rows_of_grad, *buffer(grad_x), threads()
    )
    return grad_x


def linear_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, values_shape: Sizes
) -> Tensor:
    rows, columns = shape
    nnz = values_shape[0] if len(values_shape) == 1 else nnz_of(pattern)
    grad_values = x.new_empty(nnz)
    grad_matrix, _grad_owner = matrix(grad_y, rows)
    (address, reach, _, *strides), _owner = matrix(x, columns)
    _C.linear_grad_values(
        DTYPES[x.dtype],
        *buffer(pattern),
        *grad_matrix,
        address,
        reach,
        *strides,
        *buffer(grad_values),
        threads(),
    )
    return grad_values if len(values_shape) == 1 else unpack(grad_values, pattern, values_shape)
