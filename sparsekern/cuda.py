"""The CUDA backend: the kernels of ``sparsekern._C.cuda`` on torch tensors, in builds made with nvcc.

A public function for each op that has a kernel, under its name. Sizes of patterns come from what the host
knows about them, so that nothing waits for the device and a CUDA graph can record every op.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern.formats.known import layout_of
from sparsekern.native import _C

FLOAT_TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
# What 2:4 weights may be.
TWO_FOUR_TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.int8: 4}
TWO_FOUR_LAYOUTS = {"rows": 0, "cutlass": 1}
# Memory that is loaded at once.
ALIGNMENT = 16


def is_built() -> bool:
    """Whether the extension was compiled with CUDA."""
    return hasattr(_C, "cuda")


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor.resolve_neg().contiguous()


def _buffer(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream


def _pattern(data: Tensor) -> tuple[tuple[int, ...], int, int]:
    known = layout_of(data)
    grid = (known.tile_rows, known.tile_cols)
    return (known.tile_size, known.rows, known.cols, *grid, known.tiles, known.nnz), *_buffer(data)


def transfer(values: Tensor, source: Tensor, target: Tensor, nnz: int) -> Tensor:
    return transfer_all([values], source, target, nnz)[0]


def transfer_all(vectors: list[Tensor], source: Tensor, target: Tensor, nnz: int) -> list[Tensor]:
    vectors = [_contiguous(vector) for vector in vectors]
    moved = [vector.new_empty(nnz) for vector in vectors]
    pairs = [(*_buffer(old), *_buffer(new), old.element_size()) for old, new in zip(vectors, moved)]
    _C.cuda.transfer(_pattern(source), _pattern(target), pairs, _stream(source))
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
    # Copies that are contiguous have to live until the kernels are queued.
    kept: list[Tensor] = []
    given = zip(values, patterns, scores, active, positions, counts, results)
    layers = [_layer(kept, *layer) for layer in given]
    size = _C.cuda.update_topology_workspace(layers)
    workspace = torch.empty(size, dtype=torch.uint8, device=patterns[0].device)
    _C.cuda.update_topology(layers, by == "value", *_buffer(workspace), _stream(workspace))
    return results


def _layer(
    kept: list[Tensor],
    values: Tensor,
    pattern: Tensor,
    scores: Tensor,
    active: Tensor | None,
    positions: Tensor | None,
    count: int,
    result: Tensor,
) -> tuple[Any, ...]:
    """A layer as the extension takes it."""
    shape = layout_of(pattern).shape
    order = (shape[1], math.prod(shape[2:]))
    listed = None if active is None else _floats(kept, active)
    place = 0
    if positions is not None:
        kept.append(_contiguous(positions))
        place = kept[-1].data_ptr()
    vectors = (_floats(kept, values), _floats(kept, scores))
    return _pattern(pattern), order, *vectors, listed, place, count, *_buffer(result)


def _floats(kept: list[Tensor], tensor: Tensor) -> tuple[int, int, int]:
    if tensor.dtype not in FLOAT_TYPES:
        raise TypeError(
            f"values and scores must be float16, bfloat16, float32 or float64, got {tensor.dtype}"
        )
    kept.append(_contiguous(tensor))
    return FLOAT_TYPES[tensor.dtype], *_buffer(kept[-1])


def pack_two_four(
    weights: list[Tensor], transposable: bool, transpose: bool, layout: str = "rows"
) -> list[Tensor]:
    """As the op, in one of two layouts: of each weight values, metadata, and those of its transpose.

    NaN and infinity are not refused, which would have to wait for the device: NaN counts as larger than
    infinity, and infinity as larger than any sum of finite weights, so that both show in every product.

    Parameters
    ----------
    weights : list of Tensor
        ``(N, K)``, float16, bfloat16, float32 or int8, all on one device.
    transposable, transpose : bool
        As the op's.
    layout : str
        "rows"; or "cutlass", what PyTorch's ``sparse_semi_structured_from_dense_cutlass`` makes of the pruned
        weight: metadata is int16 ``(N, K/16)``, or int32 ``(N, K/32)`` for int8.
    """
    if transpose and not transposable:
        raise ValueError("transpose: expected transposable masks, got those of rows")
    packed: list[Tensor] = []
    kept: list[Tensor] = []
    given = []
    for weight in weights:
        kept.append(_aligned(weight))
        rows, columns = weight.shape
        packings = [_new_packing(weight, rows, columns, layout)]
        packings += [_new_packing(weight, columns, rows, layout)] if transpose else []
        packed += [tensor for packing in packings for tensor in packing]
        places = [_packing(*packing) for packing in packings]
        shape = TWO_FOUR_TYPES[weight.dtype], rows, columns
        given.append((*shape, *_buffer(kept[-1]), places[0], places[1] if transpose else None))
    if weights:
        _C.cuda.pack_two_four(given, transposable, TWO_FOUR_LAYOUTS[layout], _stream(weights[0]))
    return packed


def transpose_two_four(values: list[Tensor], metadata: list[Tensor]) -> list[Tensor]:
    """The packings of the transposes of weights with transposable masks: values and metadata of each.

    Parameters
    ----------
    values : list of Tensor
        ``(N, K/2)``, elements of 1, 2 or 4 bytes, which are copied bit for bit; all on one device.
    metadata : list of Tensor
        uint8 ``(N, ceil(K/8))``.
    """
    packed: list[Tensor] = []
    kept: list[Tensor] = []
    given = []
    for kept_values, nibbles in zip(values, metadata):
        kept += [_aligned(kept_values), _aligned(nibbles)]
        rows, columns = kept_values.shape[0], 2 * kept_values.shape[1]
        packed += _new_packing(kept_values, columns, rows, "rows")
        shape = kept_values.element_size(), rows, columns
        given.append((*shape, _packing(*kept[-2:]), _packing(*packed[-2:])))
    if values:
        _C.cuda.transpose_two_four(given, _stream(values[0]))
    return packed


def _packing(values: Tensor, metadata: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    return _buffer(values), (metadata.data_ptr(), metadata.nbytes)


def _new_packing(weight: Tensor, rows: int, columns: int, layout: str) -> tuple[Tensor, Tensor]:
    values = weight.new_empty((rows, columns // 2))
    if layout == "rows":
        return values, weight.new_empty((rows, (columns + 7) // 8), dtype=torch.uint8)
    words = torch.int32 if weight.dtype == torch.int8 else torch.int16
    return values, weight.new_empty((rows, columns // 8 // words.itemsize), dtype=words)


def _aligned(tensor: Tensor) -> Tensor:
    tensor = _contiguous(tensor)
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
