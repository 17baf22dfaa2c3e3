"""The largest scores, exactly, and something of every layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern.formats.checks import check_choice
from sparsekern.nn.distributions import DISTRIBUTIONS

__all__ = ["SCOPES", "check_finite", "check_scope", "keep_largest", "largest", "warn_of_emptied"]

SCOPES = ("global", "layer")


def check_scope(scope: Any, distribution: Any) -> None:
    """Raise TypeError or ValueError for what is none, and for a distribution where layers have no share."""
    check_choice(scope, SCOPES, "scope")
    check_choice(distribution, DISTRIBUTIONS, "distribution")
    if scope == "global" and distribution != "uniform":
        raise ValueError(f"distribution must be left out unless scope='layer', got {distribution!r}")


def check_finite(scores: Mapping[str, Tensor], method: str, advice: str) -> None:
    """Raise FloatingPointError for the first layer with a score that is none."""
    for name, score in scores.items():
        if not score.isfinite().all():
            value = "NaN" if score.isnan().any() else "an infinity"
            raise FloatingPointError(
                f"the scores of method {method!r} must be finite, got {value} in layer {name!r}: {advice}"
            )


def warn_of_emptied(method: str, sparsity: float, layers: Sequence[str], advice: str) -> None:
    """Name layers that would have lost all their weights; call it from the public function."""
    named = ", ".join(map(repr, layers[:5])) + (", ..." if len(layers) > 5 else "")
    warnings.warn(
        f"{method} at sparsity {sparsity:g} takes every weight of {named}; one of each was kept. {advice}",
        stacklevel=3,
    )


def keep_largest(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], count: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Which `count` of the positions in `masks` stay: those of the largest scores, over all layers.

    Ties go to the earlier layer, and within one to the lower index of the flattened weight. A layer that
    would get none keeps its largest score, and the smallest of the others goes in its place; one without a
    position in its mask stays so.

    Parameters
    ----------
    scores : mapping of str to Tensor
        By layer name, finite.
    masks : mapping of str to Tensor
        bool, of the same shapes, with at least `count` positions in all.
    count : int
        At least the number of layers with a position.

    Returns
    -------
    dict of str to Tensor
        The new masks, each on the device of its scores.
    list of str
        The layers that would have got none.
    """
    device = next(iter(scores.values())).device
    flat = [
        scores[name].masked_fill(~mask.to(scores[name].device), -math.inf).flatten().to(device)
        for name, mask in masks.items()
    ]
    sizes = [len(part) for part in flat]
    chosen = largest(torch.cat(flat), count).split(sizes)
    filled = [bool(mask.any()) for mask in masks.values()]
    empty = [name for name, part, has_any in zip(masks, chosen, filled) if has_any and not part.any()]
    if empty:
        # The first largest of every layer comes before all else: what each layer with any would keep anyway.
        for part, has_any in zip(flat, filled):
            if has_any:
                part[part.argmax()] = math.inf
        chosen = largest(torch.cat(flat), count).split(sizes)
    kept = {
        name: part.view(scores[name].shape).to(scores[name].device, copy=True)
        for name, part in zip(masks, chosen)
    }
    return kept, empty


def largest(flat: Tensor, count: int) -> Tensor:
    """bool: the `count` largest of a vector, ties to the lower index."""
    if not count:
        return torch.zeros_like(flat, dtype=torch.bool)
    threshold = flat.topk(count, sorted=False).values.min()
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen
