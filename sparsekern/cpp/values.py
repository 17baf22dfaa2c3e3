"""Values between patterns and dense weights, on `_C`."""

from __future__ import annotations

from torch import Tensor

from sparsekern.cpp.memory import buffer, contiguous
from sparsekern.geometry import Sizes
from sparsekern.native import _C, threads

_pattern = _C.pattern


def compact(values: Tensor, pattern: Tensor) -> Tensor:
    """Values in the pattern's order: themselves, or gathered from a dense weight."""
    if values.dim() == 1:
        return contiguous(values)
    return pack(values, pattern, nnz_of(pattern))


def nnz_of(pattern: Tensor) -> int:
    return _pattern.nnz(*buffer(pattern))


def pack(dense: Tensor, pattern: Tensor, nnz: int) -> Tensor:
    dense = contiguous(dense)
    values = dense.new_empty(nnz)
    _pattern.pack(*buffer(pattern), *buffer(dense), *buffer(values), dense.element_size(), threads())
    return values


def unpack(values: Tensor, pattern: Tensor, shape: Sizes) -> Tensor:
    values = contiguous(values)
    dense = values.new_empty(shape)
    _pattern.unpack(*buffer(pattern), *buffer(values), *buffer(dense), values.element_size(), threads())
    return dense


def transfer(values: Tensor, source: Tensor, target: Tensor, nnz: int) -> Tensor:
    values = contiguous(values)
    moved = values.new_empty(nnz)
    _pattern.transfer(
        *buffer(source),
        *buffer(values),
        *buffer(target),
        *buffer(moved),
        values.element_size(),
        threads(),
    )
    return moved


def transfer_all(vectors: list[Tensor], source: Tensor, target: Tensor, nnz: int) -> list[Tensor]:
    vectors = [contiguous(vector) for vector in vectors]
    moved = [vector.new_empty(nnz) for vector in vectors]
    pairs = [(*buffer(old), *buffer(new), old.element_size()) for old, new in zip(vectors, moved)]
    _pattern.transfer_all(*buffer(source), *buffer(target), pairs, threads())
    return moved
