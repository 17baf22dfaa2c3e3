"""`Growth`: what a method may base one layer's growth on, at one update."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.methods.blocks import block_grid, block_scores_of_gradient
from sparsekern.methods.contributions import Held, Scores, Selected, candidates_of, held_total
from sparsekern.methods.dense_gradient import is_small, joined
from sparsekern.methods.driven_layer import DrivenLayer
from sparsekern.methods.random_growth import uniform_candidates
from sparsekern.methods.ranks import Ranks

__all__ = ["Growth", "NotFiniteError", "dense_total"]


class NotFiniteError(Exception):
    """The gradient of ``layer`` that an update needs has an infinity or NaN in it."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


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
        grid = block_grid(pattern, block)
        return torch.rand(grid, generator=self._draws, dtype=torch.float64).to(pattern.device)

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
        candidates = candidates_of(layer, whole, self.count)
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
        gradient = self.gradient()
        return gradient.abs_() if self.layer.block_size is None else self.magnitudes(gradient)

    def magnitudes(self, dense: Tensor) -> Tensor:
        """The magnitude of a tensor of the weight's shape, or its sum over each block."""
        if self.layer.block_size is None:
            return dense.abs()
        return block_scores_of_gradient(dense, self.layer.block_size)


def dense_total(layer: DrivenLayer, ranks: Ranks) -> Tensor:
    """The dense gradient of the last step, of the weight's shape, summed over all processes."""
    return ranks.sum_(held_total(layer, layer.watch.kept))
