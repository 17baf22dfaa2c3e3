"""What is kept of a weight's gradient from the backward pass until the update that needs it.

A contribution is either turned into scores at once, or held by its factors until the others have come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsekern.methods.dense_gradient import dense_gradient, is_small, largest_inactive
from sparsekern.methods.driven_layer import DrivenLayer
from sparsekern.ops import Candidates
from sparsekern.ops.observers import WeightGradient

__all__ = [
    "Held",
    "Scores",
    "Selected",
    "all_finite",
    "candidates_of",
    "held_total",
    "is_finite",
    "keep_candidates",
    "keep_factors",
    "score_parts",
]

# Of some positions; or of all, in the weight's shape; or of all blocks of a pattern of blocks.
Scores = Candidates | Tensor


@dataclass(frozen=True)
class Selected:
    """A contribution of which only scores were kept, while the backward pass went on."""

    scores: Scores


class Held:
    """A contribution kept until the optimizer has taken its step; its two factors by reference.

    Parameters
    ----------
    gradient : WeightGradient
    """

    def __init__(self, gradient: WeightGradient) -> None:
        grad_y, x, at_active, geometry = gradient
        # A copy: the op's result becomes `grad`, which accumulation and clipping write to.
        at_active = at_active.detach().clone()
        self._gradient = WeightGradient(grad_y.detach(), x.detach(), at_active, geometry)
        self._versions = self._current()

    @property
    def gradient(self) -> WeightGradient:
        """The contribution.

        Raises
        ------
        RuntimeError
            When somebody has written to its tensors meanwhile.
        """
        if self._current() != self._versions:
            raise RuntimeError(
                "the input of a sparse layer was written to between its backward pass and the optimizer's "
                "step, and the update of its pattern needs it: give every batch memory of its own"
            )
        return self._gradient

    def _current(self) -> tuple[int, int]:
        return self._gradient.grad_y._version, self._gradient.x._version


def keep_candidates(layer: DrivenLayer, count: Callable[[], int]) -> Callable[[WeightGradient], Selected]:
    """What a `GradientWatch` keeps where a step has one contribution: O(nnz), or no more than its factors."""

    def keep(gradient: WeightGradient) -> Selected:
        layer.kept_on = layer.pattern
        if is_small(gradient, layer.pattern):
            return Selected(dense_gradient([gradient], layer.pattern, layer.parameter.dtype).abs_())
        return Selected(candidates_of(layer, gradient, count()))

    return keep


def keep_factors(layer: DrivenLayer) -> Callable[[WeightGradient], Held]:
    """What a `GradientWatch` keeps where contributions have to be added up first: references to the factors,
    until they are more bytes than the dense gradient, which then takes their place."""

    def keep(gradient: WeightGradient) -> Held:
        layer.kept_on = layer.pattern
        kept = layer.watch.kept
        if sum(_bytes(entry) for entry in kept) > layer.pattern.numel * 4:
            kept[:] = [held_total(layer, kept)]
        return Held(gradient)

    return keep


def is_finite(entry: Selected | Held | Tensor) -> bool:
    """Whether what was kept of a contribution has no infinity or NaN in it; waits for the device."""
    if isinstance(entry, Held):
        parts: Sequence[Tensor] = entry.gradient[:3]
    else:
        parts = score_parts(entry.scores if isinstance(entry, Selected) else entry)
    return all(map(all_finite, parts))


def all_finite(tensor: Tensor) -> bool:
    """``tensor.isfinite().all()`` without a temporary of the tensor's size; waits for the device."""
    return tensor.numel() == 0 or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def score_parts(scores: Scores) -> tuple[Tensor, ...]:
    """The tensors of scores."""
    return (scores.active, scores.scores) if isinstance(scores, Candidates) else (scores,)


def candidates_of(layer: DrivenLayer, gradient: WeightGradient, count: int) -> Candidates:
    positions, scores = largest_inactive(gradient, layer.pattern, count)
    active = layer.at_active(gradient.at_active).abs().to(scores.dtype)
    return Candidates(active, positions, scores)


def held_total(layer: DrivenLayer, kept: Sequence[Held | Tensor]) -> Tensor:
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
