"""Packing 2:4 sparse weights, on `_C`."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.cpp.memory import FLOAT_TYPES, buffer, contiguous
from sparsekern.native import _C, threads

_two_four = _C.two_four
WEIGHT_TYPES = {**FLOAT_TYPES, torch.int8: 4}
# The words of metadata that CUTLASS's kernels read.
CUTLASS_WORDS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.int8: torch.int32}

Buffers = tuple[tuple[int, int], tuple[int, int]]


def _new_packing(weight: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    values = weight.new_empty((rows, columns // 2))
    return values, weight.new_empty((rows, (columns + 7) // 8), dtype=torch.uint8)


def _buffers(values: Tensor, metadata: Tensor) -> Buffers:
    """Addresses and lengths; the metadata's in bytes, of whatever words it is."""
    return buffer(values), (metadata.data_ptr(), metadata.numel() * metadata.element_size())


def pack_two_four(weights: list[Tensor], transposable: bool, transpose: bool) -> list[Tensor]:
    packed = []
    for weight in map(contiguous, weights):
        rows, columns = weight.shape
        given = (WEIGHT_TYPES[weight.dtype], rows, columns, *buffer(weight))
        packing = _new_packing(weight, rows, columns)
        packed += packing
        if not transposable:
            if transpose:
                raise ValueError("transpose: expected transposable masks, got those of rows")
            _two_four.pack(*given, _buffers(*packing), threads())
            continue
        transposed = _new_packing(weight, columns, rows) if transpose else ()
        packed += transposed
        buffers = _buffers(*transposed) if transpose else None
        _two_four.pack_transposable(*given, _buffers(*packing), buffers, threads())
    return packed


def gather_two_four(dense: Tensor, metadata: Tensor) -> Tensor:
    dense, metadata = contiguous(dense), contiguous(metadata)
    rows, columns = dense.shape
    values = dense.new_empty((rows, columns // 2))
    _two_four.gather(
        dense.element_size(), rows, columns, *buffer(dense), *buffer(metadata), *buffer(values), threads()
    )
    return values


def unpack_two_four(values: Tensor, metadata: Tensor) -> Tensor:
    values, metadata = contiguous(values), contiguous(metadata)
    rows, columns = values.shape[0], 2 * values.shape[1]
    dense = values.new_empty((rows, columns))
    packed = _buffers(values, metadata)
    _two_four.unpack(values.element_size(), rows, columns, packed, *buffer(dense), threads())
    return dense


def check_metadata(metadata: Tensor, rows: int, columns: int) -> None:
    """Raise ValueError naming the first group whose two columns do not ascend."""
    _two_four.check_metadata(rows, columns, *buffer(contiguous(metadata)))


def to_cutlass(values: Tensor, metadata: Tensor) -> tuple[Tensor, Tensor]:
    """Values and metadata as CUTLASS's kernels read them.

    What ``sparse_semi_structured_from_dense_cutlass(dense)`` of
    ``torch.sparse._semi_structured_conversions`` returns for the unpacked weight, bit for bit.

    Parameters
    ----------
    values : Tensor
        (N, K/2); float16 or bfloat16 with N a multiple of 32 and K of 64, or int8 with 16 and 128.
    metadata : Tensor
        uint8, (N, K/8).

    Returns
    -------
    tuple of Tensor
        (N, K/2) of the same dtype; and int16 (N, K/16), or int32 (N, K/32) for int8.

    Raises
    ------
    TypeError
        For another dtype.
    ValueError
        Where N or K is no such multiple.
    """
    words = _cutlass_words(values)
    values, metadata = contiguous(values), contiguous(metadata)
    rows, columns = values.shape[0], 2 * values.shape[1]
    cutlass = (
        values.new_empty(values.shape),
        values.new_empty((rows, columns // 8 // words.itemsize), dtype=words),
    )
    _two_four.to_cutlass(
        values.element_size(), rows, columns, _buffers(values, metadata), _buffers(*cutlass), threads()
    )
    return cutlass


def from_cutlass(values: Tensor, metadata: Tensor) -> tuple[Tensor, Tensor]:
    """The opposite of `to_cutlass`: values (N, K/2), and metadata uint8 (N, K/8), which is checked."""
    words = _cutlass_words(values)
    if metadata.dtype != words:
        raise TypeError(f"metadata: expected {words} for values of {values.dtype}, got {metadata.dtype}")
    values, metadata = contiguous(values), contiguous(metadata)
    rows, columns = values.shape[0], 2 * values.shape[1]
    packed = _new_packing(values, rows, columns)
    _two_four.from_cutlass(
        values.element_size(), rows, columns, _buffers(values, metadata), _buffers(*packed), threads()
    )
    check_metadata(packed[1], rows, columns)
    return packed


def _cutlass_words(values: Tensor) -> torch.dtype:
    if values.dtype not in CUTLASS_WORDS:
        reason = ": the hardware's sparsity of float32 is 1:2" if values.dtype == torch.float32 else ""
        raise TypeError(
            f"values: CUTLASS's layout expects float16, bfloat16 or int8, got {values.dtype}{reason}"
        )
    return CUTLASS_WORDS[values.dtype]
