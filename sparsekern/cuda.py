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
