"""`Growth`: what a method may base one layer's growth on, at one update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern.methods.blocks import block_scores_of_gradient
from sparsekern.methods.dense_gradient import Held, dense_gradient, is_small, joined, largest_inactive
from sparsekern.methods.driven_layer import DrivenLayer
from sparsekern.methods.random_growth import uniform_candidates
from sparsekern.methods.ranks import Ranks
from sparsekern.ops import Candidates
from sparsekern.ops.observers import WeightGradient

__all__ = [
    "Growth",
    "NotFiniteError",
    "Scores",
    "Selected",
    "dense_total",
    "hold",
    "is_finite",
    "score_parts",
    "select",
]

# Of some positions; or of all, in the weight's shape; or of all blocks of a pattern of blocks.
Scores = Candidates | Tensor


class NotFiniteError(Exception):
    """The gradient of ``layer`` that an update needs has an infinity or NaN in it."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


@dataclass(frozen=True)
class Selected:
    """A contribution of which only scores were kept, while the backward pass went on."""

    scores: Scores


def select(layer: DrivenLayer, count: Callable[[], int]) -> Callable[[WeightGradient], Selected]:
    """What a `GradientWatch` keeps where a step has one contribution: O(nnz), or no more than its factors."""

    def keep(gradient: WeightGradient) -> Selected:
        layer.kept_on = layer.pattern
        if is_small(gradient, layer.pattern):
            return Selected(dense_gradient([gradient], layer.pattern, layer.parameter.dtype).abs_())
        return Selected(_candidates(layer, gradient, count()))

    return keep


def hold(layer: DrivenLayer) -> Callable[[WeightGradient], Held]:
    """What a `GradientWatch` keeps where contributions have to be added up first: references to the factors,
    until they are more bytes than the dense gradient, which then takes their place."""

    def keep(gradient: WeightGradient) -> Held:
        layer.kept_on = layer.pattern
        kept = layer.watch.kept
        if sum(_bytes(entry) for entry in kept) > layer.pattern.numel * 4:
            kept[:] = [_total(layer, kept)]
        return Held(gradient)

    return keep


class Growth:
    """One layer's growth: how many positions, and what their scores may come from.

    Attributes
    ----------
    layer : DrivenLayer
    count : int
        Positions to grow.
    at_active : Tensor or None
        ``(nnz,)``: the gradient at active positions, where it has parts that no layer's op computes, such as
        that of an L2 term.
    """

    def __init__(
        self, layer: DrivenLayer, count: int, ranks: Ranks, draws: torch.Generator, at_active: Tensor | None
    ) -> None:
        self.layer = layer
        self.count = count
        self.at_active = at_active
        self._ranks = ranks
        self._draws = draws

    def random_scores(self) -> Scores:
        """Independent uniform numbers, the same in all processes."""
        pattern, block = self.layer.pattern, self.layer.block_size
        if block is None:
            return uniform_candidates(pattern, self.count, self._draws)
        rows, columns = (math.ceil(size / block) for size in pattern.matrix_shape)
        return torch.rand(rows, columns, generator=self._draws, dtype=torch.float64).to(pattern.device)

    def largest_gradients(self) -> Scores | None:
        """The gradient's magnitude, at active positions and the largest others, without the dense gradient
        where that is possible; None where no backward pass reached the layer in any process."""
        layer = self.layer
        kept = layer.watch.kept
        if self._ranks.size > 1 or layer.block_size is not None:
            return self.gradient_magnitudes()
        if not kept:
            return None
        if isinstance(kept[0], Selected):
            return kept[0].scores
        whole = None
        if all(isinstance(entry, Held) for entry in kept):
            whole = joined([entry.gradient for entry in kept])
        if whole is None or is_small(whole, layer.pattern):
            return self.gradient_magnitudes()
        candidates = _candidates(layer, whole, self.count)
        if self.at_active is None:
            return candidates
        return candidates._replace(active=self.at_active.abs().to(candidates.scores.dtype))

    def gradient(self) -> Tensor:
        """The dense gradient, of the weight's shape, summed over all processes."""
        layer = self.layer
        total = dense_total(layer, self._ranks)
        if self.at_active is not None:
            at_active = self._ranks.sum_(self.at_active.to(total.dtype, copy=True))
            total = torch.where(layer.pattern.to_mask(), layer.pattern.unpack(at_active), total)
        return total

    def gradient_magnitudes(self) -> Tensor | None:
        """The dense gradient's magnitude, or its sum over each block; None as for `largest_gradients`."""
        if not self._ranks.any(bool(self.layer.watch.kept), self.layer.pattern.device):
            return None
        return self.magnitudes(self.gradient())

    def magnitudes(self, dense: Tensor) -> Tensor:
        """The magnitude of a tensor of the weight's shape, or its sum over each block."""
        if self.layer.block_size is None:
            return dense.abs()
        return block_scores_of_gradient(dense, self.layer.block_size)


def is_finite(entry: Selected | Held | Tensor) -> bool:
    """Whether what was kept of a contribution has no infinity or NaN in it; waits for the device."""
    if isinstance(entry, Held):
        parts: Sequence[Tensor] = entry.gradient[:3]
    else:
        parts = score_parts(entry.scores if isinstance(entry, Selected) else entry)
    return all(bool(part.isfinite().all()) for part in parts)


def score_parts(scores: Scores) -> tuple[Tensor, ...]:
    """The tensors of scores."""
    return (scores.active, scores.scores) if isinstance(scores, Candidates) else (scores,)


def dense_total(layer: DrivenLayer, ranks: Ranks) -> Tensor:
    """The dense gradient of the last step, of the weight's shape, summed over all processes."""
    return ranks.sum_(_total(layer, layer.watch.kept))


def _candidates(layer: DrivenLayer, gradient: WeightGradient, count: int) -> Candidates:
    positions, scores = largest_inactive(gradient, layer.pattern, count)
    active = layer.at_active(gradient.at_active).abs().to(scores.dtype)
    return Candidates(active, positions, scores)


def _total(layer: DrivenLayer, kept: Sequence[Held | Tensor]) -> Tensor:
    """The dense gradient of all that was held."""
    held = [entry.gradient for entry in kept if isinstance(entry, Held)]
    total = dense_gradient(held, layer.pattern, layer.parameter.dtype)
    for entry in kept:
        if isinstance(entry, Tensor):
            total += entry
    return total


def _bytes(entry: Held | Tensor) -> int:
    if isinstance(entry, Tensor):
        return 0
    gradient = entry.gradient
    return sum(t.numel() * t.element_size() for t in (gradient.grad_y, gradient.x))
