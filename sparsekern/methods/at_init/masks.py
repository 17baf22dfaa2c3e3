"""Masks of a network before training, from the scores of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import (
    check_choice,
    check_generator,
    check_integer,
    check_sparsity,
    describe,
)
from sparsekern.methods.at_init.scores import Loss, check_loss, draw, grasp, magnitudes, snip
from sparsekern.methods.at_init.selection import check_finite, check_scope, keep_largest, warn_of_emptied
from sparsekern.methods.at_init.synflow import check_example, synflow
from sparsekern.methods.at_init.weights import weights_to_score
from sparsekern.nn.distributions import Distribution, layer_sparsities

__all__ = ["METHODS", "at_init_masks"]

METHODS = ("random", "magnitude", "snip", "grasp", "synflow")
# Rounds of the methods whose scores change as weights go; the others have one.
ROUNDS = {"snip": 1, "synflow": 100}
# What may be wrong when a method's scores are not finite.
ADVICE = {
    "magnitude": "give the layer finite weights",
    "snip": "the loss and its gradient must be finite: check weights and batch, or take a wider dtype",
    "grasp": "the loss and two derivatives of it must be finite: check weights and batch, divide the outputs "
    "by a temperature, or take a wider dtype",
    "synflow": "the outputs must be finite in float64 for an input of ones and weights without signs: check "
    "the weights, or scale them down",
}

Scores = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def at_init_masks(
    model: nn.Module,
    method: str,
    sparsity: float,
    *,
    loss: Loss | None = None,
    example: Tensor | tuple[Tensor, ...] | None = None,
    rounds: int | None = None,
    scope: str = "global",
    distribution: Distribution = "uniform",
    exclude: Iterable[str] = (),
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Prunes at initialization: masks for ``sparsify_(model, masks=...)``, by scores of the dense weights.

    The weights with the largest scores stay: exactly ``round((1 - sparsity) * numel)`` of all, ties to the
    earlier layer and then to the lower index of the flattened weight. Every layer keeps at least one, that of
    its largest score, with a warning if it would have lost all of them; the number is larger only where that
    many do not go round.

    With `rounds`, the density falls in equal ratios, ``(1 - sparsity) ** (k / rounds)`` after round k; scores
    are computed again for the network that each round leaves, and what is gone stays so.

    Parameters
    ----------
    model : torch.nn.Module
        With the initial weights. It is left exactly as it was: weights, gradients, buffers, flags, and
        torch's generators unless `method` is ``"random"``. Layers are those that `sparsify_` would convert;
        sparse ones take part as they are and are not scored.
    method : str
        ``"random"``, ``"magnitude"``, ``"snip"``, ``"grasp"`` or ``"synflow"``; their scores are those of
        `random_scores`, `magnitude_scores`, `snip_scores`, `grasp_scores` and `synflow_scores`.
    sparsity : float
        Fraction of zeros in [0, 1) over all scored layers.
    loss : callable () -> Tensor
        For ``"snip"`` and ``"grasp"``, see `snip_scores`; called once a round. Others leave it alone.
    example : Tensor or tuple of Tensor
        For ``"synflow"``: what the model takes, see `synflow_scores`. Others leave it alone.
    rounds : int, optional
        For ``"synflow"`` (100 by default) and ``"snip"`` (1; more is iterative SNIP) only.
    scope : str
        ``"global"``: the scores of all layers compete, as in the papers. ``"layer"``: each layer has its own
        number of weights.
    distribution : str
        That number, for ``scope="layer"`` only: ``"uniform"``, ``"er"`` or ``"erk"``, see `layer_sparsities`.
    exclude : names or glob patterns
        Layers that are not scored and stay dense, as in `sparsify_`.
    generator : torch.Generator, optional
        For ``"random"``; torch's global one by default.

    Returns
    -------
    dict of str to Tensor
        By layer name, bool, of the weight's shape and on its device. A weight that several layers share is
        there once, under the first one's name.

    Raises
    ------
    TypeError, ValueError
        For arguments out of range or that the method needs and does not have, a model that `sparsify_`
        refuses, names that match nothing, and scores that are 0 everywhere.
    FloatingPointError
        When a score is NaN or infinite: names the layer.

    References
    ----------
    Those of the scores. De Jorge et al., *Progressive skeletonization: trimming more fat from a network at
    initialization* (2021), iterative SNIP.
    """
    check_choice(method, METHODS, "method")
    sparsity = check_sparsity(sparsity)
    check_scope(scope, distribution)
    rounds = _check_rounds(rounds, method)
    check_generator(generator)
    weights = weights_to_score(model, exclude)
    score = _scores_of(model, weights, method, loss, example, generator)
    pools = _pools(weights, sparsity, scope, distribution)

    masks = {
        name: torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        for name, weight in weights.items()
    }
    emptied: dict[str, None] = {}
    for step in range(1, rounds + 1):
        scores = score(masks)
        _check_scores(scores, method)
        for pool in pools:
            part = {name: masks[name] for name in pool.layers}
            kept, empty = keep_largest(scores, part, pool.count_after(step / rounds))
            masks |= kept
            emptied |= dict.fromkeys(empty)
    if emptied:
        warn_of_emptied(
            method,
            sparsity,
            list(emptied),
            "A lower sparsity, scope='layer', or method='synflow' with its many rounds leaves more",
        )
    return masks


@dataclass(frozen=True)
class _Pool:
    """Layers whose weights compete with each other, and the density that they have in the end."""

    layers: Sequence[str]
    numel: int
    density: float

    def count_after(self, fraction: float) -> int:
        """How many weights are left after this fraction of the rounds."""
        return max(len(self.layers), round(self.density**fraction * self.numel))


def _pools(
    weights: Mapping[str, nn.Parameter], sparsity: float, scope: str, distribution: Distribution
) -> list[_Pool]:
    sizes = [weight.numel() for weight in weights.values()]
    if scope == "global":
        return [_Pool(list(weights), sum(sizes), 1 - sparsity)]
    shares = layer_sparsities([tuple(weight.shape) for weight in weights.values()], sparsity, distribution)
    return [_Pool([name], size, 1 - share) for name, size, share in zip(weights, sizes, shares)]


def _check_rounds(rounds: Any, method: str) -> int:
    if rounds is None:
        return ROUNDS.get(method, 1)
    if method not in ROUNDS:
        raise ValueError(
            f"rounds must be left out unless method is 'snip' or 'synflow', got {describe(rounds)} with "
            f"{method!r}"
        )
    return check_integer(rounds, "rounds")


def _scores_of(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    method: str,
    loss: Any,
    example: Any,
    generator: torch.Generator | None,
) -> Scores:
    """The method's scores as a function of the masks, its arguments checked."""
    if method in ("snip", "grasp"):
        if loss is None:
            raise ValueError(f"loss must be given with method={method!r}, got None")
        check_loss(loss)
    if method == "snip":
        return lambda masks: snip(model, weights, loss, masks)
    if method == "grasp":
        return lambda masks: grasp(model, weights, loss)
    if method == "synflow":
        if example is None:
            raise ValueError("example must be given with method='synflow', got None")
        inputs = check_example(example)
        return lambda masks: synflow(model, weights, inputs, masks)
    if method == "magnitude":
        return lambda masks: magnitudes(weights)
    return lambda masks: draw(weights, generator)


def _check_scores(scores: Mapping[str, Tensor], method: str) -> None:
    check_finite(scores, method, ADVICE.get(method, ""))
    if not any(score.any() for score in scores.values()):
        raise ValueError(
            f"the scores of method {method!r} must tell weights apart, got 0 for each: no weight has an "
            "effect, or every effect is too small for the dtype"
        )
