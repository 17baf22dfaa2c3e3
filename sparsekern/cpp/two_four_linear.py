"""The products of a weight packed 2:4, on `_C.two_four`."""

from __future__ import annotations

from torch import Tensor

from sparsekern.cpp.memory import DTYPES, buffer, contiguous, matrix
from sparsekern.native import _C, threads

_two_four = _C.two_four


def _packed(values: Tensor, metadata: Tensor) -> tuple[tuple[int, ...], tuple[Tensor, Tensor]]:
    """A packed weight as the extension takes it, and the tensors behind it."""
    values, metadata = contiguous(values), contiguous(metadata)
    rows, kept = values.shape
    return (*buffer(values), *buffer(metadata), rows, 2 * kept), (values, metadata)


def two_four_linear(x: Tensor, values: Tensor, bias: Tensor | None, metadata: Tensor) -> Tensor:
    weight, _weight_owners = _packed(values, metadata)
    *_, rows, columns = weight
    bias = None if bias is None else contiguous(bias)
    y = x.new_empty((*x.shape[:-1], rows))
    rows_of_x, _owner = matrix(x, columns)
    _two_four.linear(DTYPES[x.dtype], *weight, *rows_of_x, *buffer(bias), *buffer(y), threads())
    return y


def two_four_linear_grad_input(grad_y: Tensor, values: Tensor, metadata: Tensor) -> Tensor:
    weight, _weight_owners = _packed(values, metadata)
    *_, rows, columns = weight
    grad_x = grad_y.new_empty((*grad_y.shape[:-1], columns))
    rows_of_grad, _owner = matrix(grad_y, rows)
    _two_four.linear_grad_input(DTYPES[grad_y.dtype], *weight, *rows_of_grad, *buffer(grad_x), threads())
    return grad_x


def two_four_linear_grad_values(grad_y: Tensor, x: Tensor, metadata: Tensor) -> Tensor:
    rows, columns = metadata.shape[0], x.shape[-1]
    metadata = contiguous(metadata)
    grad_values = x.new_empty((rows, columns // 2))
    grad_matrix, _grad_owner = matrix(grad_y, rows)
    (address, reach, _, *strides), _owner = matrix(x, columns)
    _two_four.linear_grad_values(
        DTYPES[x.dtype],
        *grad_matrix,
        address,
        reach,
        *strides,
        *buffer(metadata),
        rows,
        columns,
        *buffer(grad_values),
        threads(),
    )
    return grad_values


def two_four_linear_int8(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    metadata: Tensor,
    scale: Tensor,
    x_scale: Tensor | None,
) -> Tensor:
    weight, _weight_owners = _packed(values, metadata)
    *_, rows, columns = weight
    bias = None if bias is None else contiguous(bias)
    scale = contiguous(scale)
    if x_scale is not None:
        x_scale = contiguous(x_scale)
    y = x.new_empty((*x.shape[:-1], rows))
    rows_of_x, _owner = matrix(x, columns)
    _two_four.linear_int8(
        DTYPES[x.dtype],
        *weight,
        *buffer(scale),
        *rows_of_x,
        0 if x_scale is None else x_scale.data_ptr(),
        *buffer(bias),
        *buffer(y),
        threads(),
    )
    return y
