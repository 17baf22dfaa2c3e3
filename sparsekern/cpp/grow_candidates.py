"""Where the dense gradient is largest, on `_C`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsekern.candidates import largest
from sparsekern.cpp.conv2d import convolution_of
from sparsekern.cpp.memory import DTYPES, buffer, contiguous, matrix
from sparsekern.cpp.values import nnz_of
from sparsekern.geometry import Sizes
from sparsekern.native import _C, threads


class _Passes:
    """The passes of the extension's `GrowCandidates` for `largest`."""

    device = torch.device("cpu")

    def __init__(self, native: _C.GrowCandidates, dtype: torch.dtype, shape: tuple[int, int]) -> None:
        self._native = native
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.shape = shape

    def count(self, prefix: int, shift: int, bits: int) -> Tensor:
        counts = torch.empty(1 << bits, dtype=torch.int64, device=self.device)
        self._native.count(prefix, shift, bits, *buffer(counts))
        return counts

    def count_ties(self, key: int) -> Tensor:
        ties = torch.empty(self.shape[0], dtype=torch.int64, device=self.device)
        self._native.count_ties(key, *buffer(ties))
        return ties

    def emit(self, least: int, tied_rows: int, positions: Tensor, scores: Tensor) -> int:
        return self._native.emit(least, tied_rows, *buffer(positions), *buffer(scores))


def grow_candidates(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, count: int
) -> tuple[Tensor, Tensor]:
    rows, columns = shape
    grad_matrix, _grad_owner = matrix(grad_y, rows)
    (address, reach, _, *strides), _owner = matrix(x, columns)
    native = _C.grow_candidates(
        DTYPES[x.dtype], *buffer(pattern), *grad_matrix, address, reach, *strides, threads()
    )
    return _largest(native, x, pattern, shape, count)


def _largest(
    native: _C.GrowCandidates, x: Tensor, pattern: Tensor, shape: Sizes, count: int
) -> tuple[Tensor, Tensor]:
    size = shape[0], math.prod(shape[1:])
    return largest(_Passes(native, x.dtype, size), math.prod(size) - nnz_of(pattern), count)


def grow_candidates_conv2d(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, count: int, geometry: Sizes
) -> tuple[Tensor, Tensor]:
    convolution, _ = convolution_of(x.shape, shape, geometry)
    grad_y, x = contiguous(grad_y), contiguous(x)
    native = _C.grow_candidates_conv2d(
        DTYPES[x.dtype], *buffer(pattern), convolution, *buffer(grad_y), *buffer(x), threads()
    )
    return _largest(native, x, pattern, shape, count)
