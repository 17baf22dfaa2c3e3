"""How alike two networks are as functions: what they predict, alone and together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, permutations
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.analysis.arguments import check_inputs, check_logits, check_network, check_several
from sparsekern.analysis.networks import in_mode
from sparsekern.formats.checks import check_integer, describe

__all__ = [
    "disagreement",
    "disagreement_with",
    "ensemble_accuracy",
    "jensen_shannon_divergence",
    "kl_divergence",
    "pairwise_disagreement",
    "pairwise_jensen_shannon_divergence",
    "pairwise_kl_divergence",
    "predict",
]

# Rows of probabilities that were rounded to float16 or bfloat16 sum to 1 within this, and are divided by it.
SUM_TOLERANCE = 1e-2


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, batch_size: int = 1000) -> Tensor:
    """The probabilities that a network gives to the classes: the softmax of its outputs.

    Parameters
    ----------
    model : torch.nn.Module
        From inputs to logits ``(N, C)``; in evaluation mode for the time, and left unchanged. A model that
        predicts at several places of an example, as for each token, returns more dimensions and is refused:
        ``logits.double().softmax(-1).flatten(0, -2)`` is what the other functions take.
    inputs : Tensor
        ``(N, ...)``, on the model's device.
    batch_size : int
        Examples at once.

    Returns
    -------
    Tensor
        ``(N, C)``, float64, on the model's device: a probability is 0 only below 1e-300, so divergences stay
        finite.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.
    """
    model = check_network(model)
    check_inputs(inputs, model)
    check_integer(batch_size, "batch_size")
    parts = []
    with in_mode(model, False):
        for batch in inputs.split(batch_size):
            logits = check_logits(model(batch))
            if logits.dim() != 2 or len(logits) != len(batch):
                raise ValueError(
                    f"model must return ({len(batch)}, classes) logits, got {describe(logits)}; where an "
                    "example has several predictions, as for each token, take the softmax yourself: what is "
                    "measured of predictions is of any (rows, classes)"
                )
            parts.append(logits.double().softmax(1))
    return torch.cat(parts)


def disagreement(a: Tensor, b: Tensor) -> float:
    """The fraction of examples for which two networks predict different classes.

    Parameters
    ----------
    a, b : Tensor
        ``(N, C)``: probabilities, or logits; the class is where they are largest, the first of equal ones.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or the two differ in shape or device.
    """
    _check_pair(a, b, "a", "b")
    return float((a.argmax(1) != b.argmax(1)).double().mean())


def pairwise_disagreement(predictions: Sequence[Tensor]) -> float:
    """The mean of `disagreement` over all pairs of two or more networks.

    Parameters
    ----------
    predictions : sequence of Tensor
        ``(N, C)`` of each network.

    Raises
    ------
    TypeError, ValueError
        When there are fewer than two, or what `disagreement` refuses.
    """
    given = _check_all(predictions, 2)
    return _mean(disagreement(a, b) for a, b in combinations(given, 2))


def disagreement_with(predictions: Sequence[Tensor], reference: Tensor) -> float:
    """The mean of the `disagreement` of networks with one other, as of lottery tickets with their origin.

    Parameters
    ----------
    predictions : sequence of Tensor
        ``(N, C)`` of each network, at least one.
    reference : Tensor
        ``(N, C)``.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.
    """
    given = _check_all(predictions, 1)
    _check_pair(given[0], reference, "predictions[0]", "reference")
    return _mean(disagreement(a, reference) for a in given)


def ensemble_accuracy(predictions: Sequence[Tensor], labels: Tensor) -> float:
    """Accuracy of the mean of several networks' probabilities.

    Parameters
    ----------
    predictions : sequence of Tensor
        ``(N, C)``, probabilities of each network, at least one; normalized in float64.
    labels : Tensor
        ``(N,)``, integers below C.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.
    """
    given = _check_all(predictions, 1)
    normalized = [_normalized(rows, f"predictions[{number}]") for number, rows in enumerate(given)]
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be a tensor of integers, got {describe(labels)}")
    if tuple(labels.shape) != (len(given[0]),) or labels.device != given[0].device:
        raise ValueError(
            f"labels must have shape ({len(given[0])},) on {given[0].device}, got {tuple(labels.shape)} on "
            f"{labels.device}"
        )
    classes = given[0].shape[1]
    if bool((labels < 0).any()) or bool((labels >= classes).any()):
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}"
        )
    mean = torch.stack(normalized).mean(0)
    return float((mean.argmax(1) == labels).double().mean())


def kl_divergence(p: Tensor, q: Tensor) -> float:
    r"""Kullback-Leibler divergence of q from p, the mean over examples.

    .. math:: \mathrm{KL}(p \,\|\, q) = \frac{1}{N} \sum_{n} \sum_{c} p_{nc} \log \frac{p_{nc}}{q_{nc}}

    It is 0 where p = q, and not symmetric. By definition 0 log 0 = 0, and it is infinite where q is 0 and p
    is not.

    Parameters
    ----------
    p, q : Tensor
        ``(N, C)``, probabilities. Rows that sum to 1 up to the rounding of their dtype (within 0.01) are
        normalized in float64: the divergence of what does not sum to 1 may be negative.

    Returns
    -------
    float
        In nats, at least 0; computed in float64 as a difference of logarithms.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or the two differ in shape or device.
    """
    p, q = _distributions(p, q)
    return float(_relative_entropy(p, q).mean())


def jensen_shannon_divergence(p: Tensor, q: Tensor) -> float:
    r"""Jensen-Shannon divergence, the mean over examples.

    .. math:: \mathrm{JSD}(p, q) = \tfrac12 \mathrm{KL}(p \,\|\, m) + \tfrac12 \mathrm{KL}(q \,\|\, m),
              \qquad m = \tfrac12 (p + q)

    Symmetric, and at most ln 2, which it reaches where no class has both probabilities above 0.

    Parameters, errors and result are those of `kl_divergence`.

    References
    ----------
    Lin, *Divergence measures based on the Shannon entropy* (1991), with equal weights.
    """
    p, q = _distributions(p, q)
    middle = (p + q) / 2
    return float((_relative_entropy(p, middle) + _relative_entropy(q, middle)).mean() / 2)


def pairwise_kl_divergence(predictions: Sequence[Tensor]) -> float:
    """The mean of `kl_divergence` over all ordered pairs, both directions of each, of two or more networks.

    Parameters
    ----------
    predictions : sequence of Tensor
        ``(N, C)``, probabilities of each network.

    Raises
    ------
    TypeError, ValueError
        When there are fewer than two, or what `kl_divergence` refuses.
    """
    given = _check_all(predictions, 2)
    return _mean(kl_divergence(p, q) for p, q in permutations(given, 2))


def pairwise_jensen_shannon_divergence(predictions: Sequence[Tensor]) -> float:
    """The mean of `jensen_shannon_divergence` over all pairs of two or more networks.

    Parameters and errors are those of `pairwise_kl_divergence`.
    """
    given = _check_all(predictions, 2)
    return _mean(jensen_shannon_divergence(p, q) for p, q in combinations(given, 2))


def _distributions(p: Any, q: Any) -> tuple[Tensor, Tensor]:
    """Both in float64, checked and normalized."""
    _check_pair(p, q, "p", "q")
    return _normalized(p, "p"), _normalized(q, "q")


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    """``(N,)``; xlogy(p, q) is 0 where p is, and -inf where only q is. Rounding alone goes below 0."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(1).clamp_min(0)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _check_all(predictions: Any, least: int) -> list[Tensor]:
    """The predictions of several networks for the same examples."""
    given = check_several(predictions, "predictions", least, "tensors of predictions")
    for number, other in enumerate(given):
        _check_pair(given[0], other, "predictions[0]", f"predictions[{number}]")
    return given


def _check_pair(a: Any, b: Any, first: str, second: str) -> None:
    for value, name in ((a, first), (b, second)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {describe(value)}")
        if value.dim() != 2 or value.numel() == 0:
            raise ValueError(f"{name} must have shape (examples, classes), got {tuple(value.shape)}")
        if bool(value.isnan().any()):
            raise ValueError(f"{name} must not have NaN")
    if a.shape != b.shape or a.device != b.device:
        raise ValueError(
            f"{second} must have the shape and device of {first}, {tuple(a.shape)} on {a.device}, got "
            f"{tuple(b.shape)} on {b.device}"
        )


def _normalized(p: Tensor, name: str) -> Tensor:
    """The rows in float64, divided by their sums, when they are distributions up to rounding.

    Logits given in their place would pass for numbers.
    """
    exact = p.double()
    total = exact.sum(1, keepdim=True)
    if bool((p < 0).any()) or bool(((total - 1).abs() > SUM_TOLERANCE).any()):
        raise ValueError(
            f"{name} must be probabilities, rows of numbers from 0 that sum to 1, got a least one of "
            f"{float(p.min()):.4g} and sums of {float(total.min()):.4g} to {float(total.max()):.4g}"
        )
    return exact / total
