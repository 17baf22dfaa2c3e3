"""The C++ backend: each op's kernel of ``sparsekern._C`` on torch tensors.

A public function for each op, under its name. They are handed checked arguments (see `sparsekern.ops`); they
arrange memory and pass addresses. Sizes are checked once more by the extension itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.geometry import Sizes, conv2d_output_size
from sparsekern.native import _C, threads

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}

_pattern = _C.pattern


def _buffer(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.numel())


def _contiguous(tensor: Tensor) -> Tensor:
    """`tensor` as its memory should read: a lazily negated one would read as its opposite."""
    return tensor.resolve_neg().contiguous()


def _matrix(tensor: Tensor, columns: int) -> tuple[tuple[int, ...], Tensor]:
    """Address, reachable elements, rows and strides of `tensor` as a matrix, and the tensor behind them."""
    tensor = tensor.resolve_neg()
    matrix = tensor if tensor.dim() == 2 else tensor.reshape(-1, columns)
    if matrix.is_contiguous():
        reach = matrix.numel()
    else:
        storage = matrix.untyped_storage().nbytes() // matrix.element_size()
        reach = storage - matrix.storage_offset()
    rows, (row_stride, column_stride) = matrix.shape[0], matrix.stride()
    return (matrix.data_ptr(), reach, rows, row_stride, column_stride), matrix


def _compact(values: Tensor, pattern: Tensor) -> Tensor:
    """Values in the pattern's order: themselves, or gathered from a dense weight."""
    if values.dim() == 1:
        return _contiguous(values)
    return pack(values, pattern, _nnz(pattern))


def _nnz(pattern: Tensor) -> int:
    low, high = pattern[8:10].tolist()
    return (low & 0xFFFFFFFF) | (high << 32)


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: Sizes) -> Tensor:
    rows, columns = shape
    weight = _compact(values, pattern)
    bias = None if bias is None else _contiguous(bias)
    y = torch.empty((*x.shape[:-1], rows), dtype=x.dtype, device="cpu")
    matrix, _owner = _matrix(x, columns)
    _C.linear(
        DTYPES[x.dtype], *_buffer(pattern), *_buffer(weight), *matrix, *_buffer(bias), y.data_ptr(), threads()
    )
    return y


def linear_grad_input(grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sizes) -> Tensor:
    rows, columns = shape
    weight = _compact(values, pattern)
    grad_x = torch.empty((*grad_y.shape[:-1], columns), dtype=grad_y.dtype, device="cpu")
    matrix, _owner = _matrix(grad_y, rows)
    _C.linear_grad_input(
        DTYPES[grad_y.dtype], *_buffer(pattern), *_buffer(weight), *matrix, grad_x.data_ptr(), threads()
    )
    return grad_x


def linear_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, values_shape: Sizes
) -> Tensor:
    rows, columns = shape
    nnz = values_shape[0] if len(values_shape) == 1 else _nnz(pattern)
    grad_values = torch.empty(nnz, dtype=x.dtype, device="cpu")
    grad_matrix, _grad_owner = _matrix(grad_y, rows)
    (address, reach, _, *strides), _owner = _matrix(x, columns)
    _C.linear_grad_values(
        DTYPES[x.dtype],
        *_buffer(pattern),
        *grad_matrix,
        address,
        reach,
        *strides,
        *_buffer(grad_values),
        threads(),
    )
    return grad_values if len(values_shape) == 1 else unpack(grad_values, pattern, values_shape)


def _conv2d_shape(size: Sizes, geometry: Sizes) -> _C.Conv2dShape:
    batch, _, height, width = size
    *strides, groups = geometry
    return _C.Conv2dShape(batch, groups, height, width, *strides)


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Tensor,
    shape: Sizes,
    geometry: Sizes,
) -> Tensor:
    out = conv2d_output_size(x.shape, shape, geometry)
    weight = _compact(values, pattern)
    x = _contiguous(x)
    bias = None if bias is None else _contiguous(bias)
    y = torch.empty(out, dtype=x.dtype, device="cpu")
    _C.conv2d(
        DTYPES[x.dtype],
        *_buffer(pattern),
        _conv2d_shape(x.shape, geometry),
        *_buffer(weight),
        *_buffer(x),
        *_buffer(bias),
        *_buffer(y),
        threads(),
    )
    return y


def conv2d_grad_input(
    grad_y: Tensor,
    values: Tensor,
    pattern: Tensor,
    shape: Sizes,
    input_size: Sizes,
    geometry: Sizes,
) -> Tensor:
    weight = _compact(values, pattern)
    grad_y = _contiguous(grad_y)
    grad_x = torch.empty(input_size, dtype=grad_y.dtype, device="cpu")
    _C.conv2d_grad_input(
        DTYPES[grad_y.dtype],
        *_buffer(pattern),
        _conv2d_shape(input_size, geometry),
        *_buffer(weight),
        *_buffer(grad_y),
        *_buffer(grad_x),
        threads(),
    )
    return grad_x


def conv2d_grad_values(
    grad_y: Tensor,
    x: Tensor,
    pattern: Tensor,
    shape: Sizes,
    values_shape: Sizes,
    geometry: Sizes,
) -> Tensor:
    nnz = values_shape[0] if len(values_shape) == 1 else _nnz(pattern)
    grad_y, x = _contiguous(grad_y), _contiguous(x)
    grad_values = torch.empty(nnz, dtype=x.dtype, device="cpu")
    _C.conv2d_grad_values(
        DTYPES[x.dtype],
        *_buffer(pattern),
        _conv2d_shape(x.shape, geometry),
        *_buffer(grad_y),
        *_buffer(x),
        *_buffer(grad_values),
        threads(),
    )
    return grad_values if len(values_shape) == 1 else unpack(grad_values, pattern, values_shape)


def pack(dense: Tensor, pattern: Tensor, nnz: int) -> Tensor:
    dense = _contiguous(dense)
    values = torch.empty(nnz, dtype=dense.dtype, device="cpu")
    _pattern.pack(*_buffer(pattern), *_buffer(dense), *_buffer(values), dense.element_size(), threads())
    return values


def unpack(values: Tensor, pattern: Tensor, shape: Sizes) -> Tensor:
    values = _contiguous(values)
    dense = torch.empty(shape, dtype=values.dtype, device="cpu")
    _pattern.unpack(*_buffer(pattern), *_buffer(values), *_buffer(dense), values.element_size(), threads())
    return dense


def transfer(values: Tensor, source: Tensor, target: Tensor, nnz: int) -> Tensor:
    values = _contiguous(values)
    moved = torch.empty(nnz, dtype=values.dtype, device="cpu")
    _pattern.transfer(
        *_buffer(source),
        *_buffer(values),
        *_buffer(target),
        *_buffer(moved),
        values.element_size(),
        threads(),
    )
    return moved
