"""``update_topology`` and ``transfer_all``: other active positions for the same number of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.formats.checks import check_choice, check_integer, describe
from sparsekern.formats.layout import Layout
from sparsekern.formats.pattern import Pattern
from sparsekern.ops.arguments import backend_name, check_tensor
from sparsekern.ops.plain_operator import PlainOperator

__all__ = ["Candidates", "transfer_all", "update_topology"]

SCORE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Candidates(NamedTuple):
    """Scores of some positions in place of all: of the active ones, and the best of the others.

    Attributes
    ----------
    active : Tensor
        ``(nnz,)``: scores of the active positions in the pattern's order.
    positions : Tensor
        int64 ``(c,)``: inactive positions, each once, as indices ``n * K + k`` of the weight matrix (a
        convolution's columns k are in (kh, kw, cin) order).
    scores : Tensor
        ``(c,)``: theirs, of active's dtype.
    """

    active: Tensor
    positions: Tensor
    scores: Tensor


def _update_topology_fake(
    values: list[Tensor],
    patterns: list[Tensor],
    scores: list[Tensor],
    active: list[Tensor | None],
    positions: list[Tensor | None],
    counts: Sequence[int],
    words: Sequence[int],
    by: str,
    backend: str,
) -> list[Tensor]:
    return [pattern.new_empty(size) for pattern, size in zip(patterns, words)]


def _transfer_all_fake(
    vectors: list[Tensor], source: Tensor, target: Tensor, nnz: int, backend: str
) -> list[Tensor]:
    return [vector.new_empty(nnz) for vector in vectors]


_update_topology = PlainOperator(
    "update_topology(Tensor[] values, Tensor[] patterns, Tensor[] scores, Tensor?[] active, "
    "Tensor?[] positions, SymInt[] counts, SymInt[] words, str by, str backend) -> Tensor[]",
    fake=_update_topology_fake,
)
_transfer_all = PlainOperator(
    "transfer_all(Tensor[] vectors, Tensor source, Tensor target, SymInt nnz, str backend) -> Tensor[]",
    fake=_transfer_all_fake,
)


def _check_list(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or isinstance(value, Candidates):
        raise TypeError(f"{name} must be a list with an entry for each layer, got {describe(value)}")


def _check_floats(name: str, tensor: Any, shape: tuple[int, ...], pattern: Pattern) -> None:
    check_tensor(name, tensor)
    if tensor.dtype not in SCORE_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in SCORE_DTYPES)
        raise TypeError(f"{name} must have one of the dtypes {names}, got {tensor.dtype}")
    _check_place(name, tensor, shape, pattern)


def _check_place(name: str, tensor: Tensor, shape: tuple[int, ...], pattern: Pattern) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.device != pattern.device:
        raise ValueError(f"{name} must be on the pattern's device {pattern.device}, got {tensor.device}")


def _check_candidates(name: str, candidates: Candidates, pattern: Pattern, count: int) -> None:
    _check_floats(f"{name}.active", candidates.active, (pattern.nnz,), pattern)
    positions = candidates.positions
    if not isinstance(positions, Tensor) or positions.dtype != torch.int64 or positions.dim() != 1:
        raise TypeError(f"{name}.positions must be a 1-D int64 tensor, got {describe(positions)}")
    listed = positions.shape[0]
    _check_place(f"{name}.positions", positions, (listed,), pattern)
    _check_floats(f"{name}.scores", candidates.scores, (listed,), pattern)
    if candidates.scores.dtype != candidates.active.dtype:
        raise TypeError(
            f"{name}.scores and {name}.active must have one dtype, got {candidates.scores.dtype} and "
            f"{candidates.active.dtype}"
        )
    least = min(count, pattern.numel - pattern.nnz)
    if listed < least:
        raise ValueError(f"{name}.positions must name at least {least} positions, got {listed}")


def _check_layer(i: int, values: Any, pattern: Any, scores: Any, count: Any) -> int:
    """Raise unless the arguments of layer `i` fit together; return its count."""
    if not isinstance(pattern, Pattern):
        raise TypeError(f"patterns[{i}] must be a sparsekern.Pattern, got {type(pattern).__name__}")
    _check_floats(f"values[{i}]", values, (pattern.nnz,), pattern)
    count = check_integer(count, f"counts[{i}]", minimum=0)
    if count > pattern.nnz:
        raise ValueError(f"counts[{i}] must be at most nnz, {pattern.nnz}, got {count}")
    if isinstance(scores, Candidates):
        _check_candidates(f"scores[{i}]", scores, pattern, count)
    else:
        _check_floats(f"scores[{i}]", scores, pattern.shape, pattern)
    tiles = Layout.complete(pattern.shape, pattern.tile_size, pattern.nnz).tiles
    if tiles >= 2**31:
        raise ValueError(f"patterns[{i}] must have fewer than 2**31 tiles in its grid, got {tiles}")
    return count


def update_topology(
    values: Sequence[Tensor],
    patterns: Sequence[Pattern],
    scores: Sequence[Tensor | Candidates],
    counts: Sequence[int],
    *,
    by: str = "magnitude",
    backend: str | None = None,
) -> list[Pattern]:
    """Drop the weakest active positions of each layer and grow as many where a score is largest.

    For each layer, ``count`` of the active positions with the smallest ``|value|`` are dropped. Then, of all
    positions that are not kept, the ``count`` with the largest ``|score|`` (or score) become active: the just
    dropped may come back. Ties go to the position that comes first in the weight matrix, row by row; -0.0 is
    0.0, and NaN counts as larger than infinity. The number of active positions never changes. `transfer` or
    `transfer_all` then move the values: kept and regrown positions keep theirs, new ones get 0.

    Parameters
    ----------
    values : list of Tensor
        ``(nnz,)`` each; float16, bfloat16, float32 or float64.
    patterns : list of Pattern
        On the values' device, one for all layers.
    scores : list of Tensor or Candidates
        Of the weight's own shape, of one of these dtypes, any strides; or `Candidates`, of which at least
        ``count`` are listed, or all inactive positions. On a GPU the positions listed are not checked: those
        that are outside the matrix or active are passed over.
    counts : list of int
        Positions to exchange: 0 to nnz.
    by : str
        ``"magnitude"``: grow the largest ``|score|``, as RigL does by the gradient; ``"value"``: the largest
        score, as SET does by random numbers.
    backend : str, optional
        As in `linear`.

    Returns
    -------
    list of Pattern
        With complete grids of tiles (see `Pattern.num_tiles`), on the same device. Nothing is waited for.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, naming it and its layer.
    BackendError
        When no backend, or not the named one, can run the inputs.

    Notes
    -----
    Evci et al., *Rigging the Lottery*, ICML 2020, Section 3; Mocanu et al., Nature Communications 2018, for
    SET. Not differentiable.
    """
    for name, entries in {"values": values, "patterns": patterns, "scores": scores, "counts": counts}.items():
        _check_list(name, entries)
        if len(entries) != len(values):
            raise ValueError(
                f"{name} must have an entry for each of {len(values)} layers, got {len(entries)}"
            )
    check_choice(by, ("magnitude", "value"), "by")
    backend = backend_name(backend)
    layers = zip(values, patterns, scores, counts)
    counts = [_check_layer(i, *layer) for i, layer in enumerate(layers)]
    for i, pattern in enumerate(patterns):
        if pattern.device != patterns[0].device:
            raise ValueError(
                f"patterns[{i}] must be on the first one's device {patterns[0].device}, got {pattern.device}"
            )
    if not patterns:
        return []
    layouts = [Layout.complete(pattern.shape, pattern.tile_size, pattern.nnz) for pattern in patterns]
    listed = [entry if isinstance(entry, Candidates) else None for entry in scores]
    found = _update_topology(
        [tensor.detach() for tensor in values],
        [pattern.data for pattern in patterns],
        [(entry.scores if isinstance(entry, Candidates) else entry).detach() for entry in scores],
        [None if entry is None else entry.active.detach() for entry in listed],
        [None if entry is None else entry.positions for entry in listed],
        counts,
        [layout.words for layout in layouts],
        by,
        backend,
    )
    return [Pattern._from_valid(data, layout) for data, layout in zip(found, layouts)]


def transfer_all(
    vectors: Sequence[Tensor], source: Pattern, target: Pattern, *, backend: str | None = None
) -> list[Tensor]:
    """``[transfer(vector, source, target) for vector in vectors]`` at once, without gradients.

    Where each value comes from is found once for all vectors: those of a weight, its momentum and whatever
    else an optimizer keeps.

    Parameters
    ----------
    vectors : list of Tensor
        ``(source.nnz,)`` each, on the patterns' device; floating-point dtypes, which may differ.
    source, target : Pattern
        Of one shape and one tile size.
    backend : str, optional
        As in `linear`.

    Returns
    -------
    list of Tensor
        ``(target.nnz,)`` each: kept positions keep their value, new ones get 0. None requires a gradient.

    Raises
    ------
    TypeError, ValueError, BackendError
        When an argument is none of the above, or no backend can run it.
    """
    _check_list("vectors", vectors)
    for name, pattern in {"source": source, "target": target}.items():
        if not isinstance(pattern, Pattern):
            raise TypeError(f"{name} must be a sparsekern.Pattern, got {type(pattern).__name__}")
    if source.shape != target.shape or source.tile_size != target.tile_size:
        raise ValueError(
            f"target must have the source's shape {source.shape} and tile size {source.tile_size}, "
            f"got {target.shape} and {target.tile_size}"
        )
    if source.device != target.device:
        raise ValueError(f"target must be on the source's device {source.device}, got {target.device}")
    for i, vector in enumerate(vectors):
        check_tensor(f"vectors[{i}]", vector)
        _check_place(f"vectors[{i}]", vector, (source.nnz,), source)
    backend = backend_name(backend)
    if not vectors:
        return []
    detached = [vector.detach() for vector in vectors]
    return _transfer_all(detached, source.data, target.data, target.nnz, backend)
