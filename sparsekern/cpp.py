"""The C++ backend: each op's kernel of ``sparsekern._C`` on torch tensors.

A public function for each op, under its name. They are handed checked arguments (see `sparsekern.ops`); they
arrange memory and pass addresses. Sizes are checked once more by the extension itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern.candidates import largest
from sparsekern.geometry import Sizes, conv2d_output_size
from sparsekern.native import _C, threads

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
FLOAT_TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}

_pattern = _C.pattern


def _buffer(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.numel())


def _contiguous(tensor: Tensor) -> Tensor:
    """`tensor` as its memory should read: a lazily negated one would read as its opposite."""
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def _matrix(tensor: Tensor, columns: int) -> tuple[tuple[int, ...], Tensor]:
    """Address, reachable elements, rows and strides of `tensor` as a matrix, and the tensor behind them."""
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    matrix = tensor if tensor.dim() == 2 else tensor.reshape(-1, columns)
    rows = matrix.shape[0]
    if matrix.is_contiguous():
        return (matrix.data_ptr(), matrix.numel(), rows, columns, 1), matrix
    reach = matrix.untyped_storage().nbytes() // matrix.element_size() - matrix.storage_offset()
    return (matrix.data_ptr(), reach, rows, *matrix.stride()), matrix


def _compact(values: Tensor, pattern: Tensor) -> Tensor:
    """Values in the pattern's order: themselves, or gathered from a dense weight."""
    if values.dim() == 1:
        return _contiguous(values)
    return pack(values, pattern, _nnz(pattern))


def _nnz(pattern: Tensor) -> int:
    return _pattern.nnz(*_buffer(pattern))


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: Sizes) -> Tensor:
    rows, columns = shape
    weight = _compact(values, pattern)
    bias = None if bias is None else _contiguous(bias)
    y = x.new_empty((*x.shape[:-1], rows))
    matrix, _owner = _matrix(x, columns)
    _C.linear(
        DTYPES[x.dtype], *_buffer(pattern), *_buffer(weight), *matrix, *_buffer(bias), *_buffer(y), threads()
    )
    return y


def linear_grad_input(grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sizes) -> Tensor:
    rows, columns = shape
    weight = _compact(values, pattern)
    grad_x = grad_y.new_empty((*grad_y.shape[:-1], columns))
    matrix, _owner = _matrix(grad_y, rows)
    _C.linear_grad_input(
        DTYPES[grad_y.dtype], *_buffer(pattern), *_buffer(weight), *matrix, *_buffer(grad_x), threads()
    )
    return grad_x


def linear_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, values_shape: Sizes
) -> Tensor:
    rows, columns = shape
    nnz = values_shape[0] if len(values_shape) == 1 else _nnz(pattern)
    grad_values = x.new_empty(nnz)
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


class _Passes:
    """The passes of the extension's `GrowCandidates` for `largest`."""

    device = torch.device("cpu")

    def __init__(self, native: _C.GrowCandidates, dtype: torch.dtype, shape: tuple[int, int]) -> None:
        self._native = native
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.shape = shape

    def count(self, prefix: int, shift: int, bits: int) -> Tensor:
        counts = torch.empty(1 << bits, dtype=torch.int64, device=self.device)
        self._native.count(prefix, shift, bits, *_buffer(counts))
        return counts

    def count_ties(self, key: int) -> Tensor:
        ties = torch.empty(self.shape[0], dtype=torch.int64, device=self.device)
        self._native.count_ties(key, *_buffer(ties))
        return ties

    def emit(self, least: int, tied_rows: int, positions: Tensor, scores: Tensor) -> int:
        return self._native.emit(least, tied_rows, *_buffer(positions), *_buffer(scores))


def grow_candidates(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, count: int
) -> tuple[Tensor, Tensor]:
    rows, columns = shape
    grad_matrix, _grad_owner = _matrix(grad_y, rows)
    (address, reach, _, *strides), _owner = _matrix(x, columns)
    native = _C.grow_candidates(
        DTYPES[x.dtype], *_buffer(pattern), *grad_matrix, address, reach, *strides, threads()
    )
    return _largest(native, x, pattern, shape, count)


def _largest(
    native: _C.GrowCandidates, x: Tensor, pattern: Tensor, shape: Sizes, count: int
) -> tuple[Tensor, Tensor]:
    matrix = shape[0], math.prod(shape[1:])
    return largest(_Passes(native, x.dtype, matrix), math.prod(matrix) - _nnz(pattern), count)


def _convolution(size: Sizes, shape: Sizes, geometry: Sizes) -> tuple[_C.Conv2dShape, tuple[int, ...]]:
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
    convolution, out = _convolution(x.shape, shape, geometry)
    weight = _compact(values, pattern)
    x = _contiguous(x)
    bias = None if bias is None else _contiguous(bias)
    y = x.new_empty(out)
    _C.conv2d(
        DTYPES[x.dtype],
        *_buffer(pattern),
        convolution,
        *_buffer(weight),
        *_buffer(x),
        *_buffer(bias),
        *_buffer(y),
        threads(),
    )
    return y


def conv2d_grad_input(
    grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sizes, input_size: Sizes, geometry: Sizes
) -> Tensor:
    convolution, _ = _convolution(input_size, shape, geometry)
    weight = _compact(values, pattern)
    grad_y = _contiguous(grad_y)
    grad_x = grad_y.new_empty(input_size)
    _C.conv2d_grad_input(
        DTYPES[grad_y.dtype],
        *_buffer(pattern),
        convolution,
        *_buffer(weight),
        *_buffer(grad_y),
        *_buffer(grad_x),
        threads(),
    )
    return grad_x


def conv2d_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, values_shape: Sizes, geometry: Sizes
) -> Tensor:
    convolution, _ = _convolution(x.shape, shape, geometry)
    nnz = values_shape[0] if len(values_shape) == 1 else _nnz(pattern)
    grad_y, x = _contiguous(grad_y), _contiguous(x)
    grad_values = x.new_empty(nnz)
    _C.conv2d_grad_values(
        DTYPES[x.dtype],
        *_buffer(pattern),
        convolution,
        *_buffer(grad_y),
        *_buffer(x),
        *_buffer(grad_values),
        threads(),
    )
    return grad_values if len(values_shape) == 1 else unpack(grad_values, pattern, values_shape)


def grow_candidates_conv2d(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, count: int, geometry: Sizes
) -> tuple[Tensor, Tensor]:
    convolution, _ = _convolution(x.shape, shape, geometry)
    grad_y, x = _contiguous(grad_y), _contiguous(x)
    native = _C.grow_candidates_conv2d(
        DTYPES[x.dtype], *_buffer(pattern), convolution, *_buffer(grad_y), *_buffer(x), threads()
    )
    return _largest(native, x, pattern, shape, count)


def pack(dense: Tensor, pattern: Tensor, nnz: int) -> Tensor:
    dense = _contiguous(dense)
    values = dense.new_empty(nnz)
    _pattern.pack(*_buffer(pattern), *_buffer(dense), *_buffer(values), dense.element_size(), threads())
    return values


def unpack(values: Tensor, pattern: Tensor, shape: Sizes) -> Tensor:
    values = _contiguous(values)
    dense = values.new_empty(shape)
    _pattern.unpack(*_buffer(pattern), *_buffer(values), *_buffer(dense), values.element_size(), threads())
    return dense


def transfer(values: Tensor, source: Tensor, target: Tensor, nnz: int) -> Tensor:
    values = _contiguous(values)
    moved = values.new_empty(nnz)
    _pattern.transfer(
        *_buffer(source),
        *_buffer(values),
        *_buffer(target),
        *_buffer(moved),
        values.element_size(),
        threads(),
    )
    return moved


def transfer_all(vectors: list[Tensor], source: Tensor, target: Tensor, nnz: int) -> list[Tensor]:
    vectors = [_contiguous(vector) for vector in vectors]
    moved = [vector.new_empty(nnz) for vector in vectors]
    pairs = [(*_buffer(old), *_buffer(new), old.element_size()) for old, new in zip(vectors, moved)]
    _pattern.transfer_all(*_buffer(source), *_buffer(target), pairs, threads())
    return moved


def update_topology(
    values: list[Tensor],
    patterns: list[Tensor],
    scores: list[Tensor],
    active: list[Tensor | None],
    positions: list[Tensor | None],
    counts: Sequence[int],
    words: Sequence[int],
    by: str,
) -> list[Tensor]:
    results = [pattern.new_empty(size) for pattern, size in zip(patterns, words)]
    for i, (pattern, result) in enumerate(zip(patterns, results)):
        # Copies that are contiguous have to live as long as the call.
        tensors = [_contiguous(tensor) for tensor in (values[i], scores[i])]
        how = (counts[i], by == "value", *_buffer(result), threads())
        if positions[i] is None:
            _pattern.update_topology(*_buffer(pattern), *map(_floats, tensors), *how)
        else:
            tensors.append(_contiguous(active[i]))
            listed = _contiguous(positions[i])
            _pattern.update_topology_listed(
                *_buffer(pattern), *map(_floats, tensors), listed.data_ptr(), *how
            )
    return results


def _floats(tensor: Tensor) -> tuple[int, int, int]:
    if tensor.dtype not in FLOAT_TYPES:
        raise TypeError(
            f"values and scores must be float16, bfloat16, float32 or float64, got {tensor.dtype}"
        )
    return FLOAT_TYPES[tensor.dtype], *_buffer(tensor)
