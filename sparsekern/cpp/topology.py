"""Other active positions for the same values, on `_C`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sparsekern.cpp.memory import buffer, contiguous, floats
from sparsekern.native import _C, threads

_pattern = _C.pattern


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
        tensors = [contiguous(tensor) for tensor in (values[i], scores[i])]
        how = (counts[i], by == "value", *buffer(result), threads())
        if positions[i] is None:
            _pattern.update_topology(*buffer(pattern), *map(floats, tensors), *how)
        else:
            tensors.append(contiguous(active[i]))
            listed = contiguous(positions[i])
            _pattern.update_topology_listed(*buffer(pattern), *map(floats, tensors), listed.data_ptr(), *how)
    return results
