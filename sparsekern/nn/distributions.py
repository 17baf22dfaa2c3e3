"""How a model's sparsity is shared out among its layers: uniform, Erdos-Renyi, Erdos-Renyi-Kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from sparsekern.formats.checks import check_choice, check_shape, check_sparsity, describe

Distribution = Literal["uniform", "er", "erk"]
DISTRIBUTIONS = ("uniform", "er", "erk")


def layer_sparsities(
    shapes: Sequence[Sequence[int]], sparsity: float, distribution: Distribution = "uniform"
) -> list[float]:
    r"""The sparsity of each layer, such that all of them together have the asked one exactly.

    .. math:: \mathrm{density}_l = \min(1, \varepsilon s_l), \qquad
              s_l = \begin{cases} 1 & \text{uniform} \\
              \frac{n_{in} + n_{out}}{n_{in} n_{out}} & \text{er} \\
              \frac{n_{in} + n_{out} + k_h + k_w}{n_{in} n_{out} k_h k_w} & \text{erk} \end{cases}

    :math:`\varepsilon` solves for the total. A layer whose density would exceed 1 is made dense and the rest
    is solved again. Fractions of a weight are then rounded by largest remainder (ties to the earlier layer).

    Parameters
    ----------
    shapes : sequence of shapes
        Of the weights: (n_out, n_in) or (n_out, n_in, k_h, k_w), n_in per group for grouped convolutions.
    sparsity : float
        Fraction of zeros over all layers, in [0, 1).
    distribution : str
        ``"uniform"``, ``"er"`` or ``"erk"``; the last two are the same without convolutions.

    Returns
    -------
    list of float
        ``1 - nnz_l / numel_l`` with integers nnz_l that sum to ``round((1 - sparsity) * total)``, and each at
        least 1 (the sum is larger only where that many weights do not go round).

    Raises
    ------
    TypeError, ValueError
        For a sparsity outside [0, 1), an unknown distribution, no shape, or one that is not 2-D or 4-D.

    References
    ----------
    Mocanu et al., *Scalable training of artificial neural networks with adaptive sparse
    connectivity* (2018), ER. Evci et al., *Rigging the Lottery* (2020), Section 3, ERK.
    """
    sizes, scales, sparsity = _checked(shapes, sparsity, distribution)
    counts = _counts(sizes, scales, sparsity, sizes)
    return [1 - count / size for count, size in zip(counts, sizes, strict=True)]


def layer_counts(
    shapes: Sequence[Sequence[int]], sparsity: float, distribution: Distribution, limits: Sequence[int]
) -> list[int]:
    """The number of weights that each layer keeps where it has no more than `limits` left.

    A layer whose share by `layer_sparsities` is larger keeps all that it has, and the others share the rest.

    Parameters
    ----------
    limits : sequence of int
        Weights left in each layer; may be 0.

    Returns
    -------
    list of int
        They sum to ``round((1 - sparsity) * total)``, and each is at least 1 where its limit is.

    Raises
    ------
    ValueError
        When all that is left is fewer than that.
    """
    sizes, scales, sparsity = _checked(shapes, sparsity, distribution)
    total = sum(sizes)
    if sum(limits) < round((1 - sparsity) * total):
        raise ValueError(
            f"sparsity must be at least what the layers have already, {1 - sum(limits) / total:.6g}, got "
            f"{sparsity}"
        )
    return _counts(sizes, scales, sparsity, limits)


def _counts(sizes: list[int], scales: list[float], sparsity: float, limits: Sequence[int]) -> list[int]:
    target = max(round((1 - sparsity) * sum(sizes)), sum(limit > 0 for limit in limits))
    return _round_to_total(_quotas(sizes, scales, target, limits), limits, target)


def asked_sparsities(
    shapes: Sequence[Sequence[int]], sparsity: float, distribution: Distribution = "uniform"
) -> list[float]:
    """What the formula of `layer_sparsities` asks of each layer, before weights are rounded to whole ones.

    Parameters, errors and result are those of `layer_sparsities`, but that the layers' shares of weights are
    fractions, which sum to ``(1 - sparsity) * total``.
    """
    sizes, scales, sparsity = _checked(shapes, sparsity, distribution)
    quotas = _quotas(sizes, scales, (1 - sparsity) * sum(sizes), sizes)
    return [1 - quota / size for quota, size in zip(quotas, sizes, strict=True)]


def _checked(
    shapes: Sequence[Sequence[int]], sparsity: float, distribution: Distribution
) -> tuple[list[int], list[float], float]:
    """Size and scale of each layer, and the sparsity as a float."""
    sparsity = check_sparsity(sparsity)
    check_choice(distribution, DISTRIBUTIONS, "distribution")
    if not isinstance(shapes, Sequence):
        raise TypeError(f"shapes must be a sequence of shapes, got {describe(shapes)}")
    checked = [check_shape(shape, f"shapes[{index}]") for index, shape in enumerate(shapes)]
    if not checked:
        raise ValueError("shapes must hold at least one layer's shape, got none")
    return (
        [math.prod(shape) for shape in checked],
        [_scale(shape, distribution) for shape in checked],
        sparsity,
    )


def _scale(shape: tuple[int, ...], distribution: Distribution) -> float:
    """The density of a layer up to the common factor."""
    if distribution == "uniform":
        return 1.0
    counted = shape if distribution == "erk" else shape[:2]
    return sum(counted) / math.prod(counted)


def _quotas(sizes: list[int], scales: list[float], target: float, limits: Sequence[int]) -> list[float]:
    """Active weights of each layer before rounding: in proportion to scale * size, within its limit."""
    full: set[int] = set()
    while True:
        rest = [layer for layer in range(len(sizes)) if layer not in full]
        budget = target - sum(limits[layer] for layer in full)
        shares = sum(scales[layer] * sizes[layer] for layer in rest)
        # Taking a full layer out raises epsilon for the rest, so one that overflows now stays full.
        epsilon = budget / shares if rest else 0.0
        overflowing = [layer for layer in rest if epsilon * scales[layer] >= limits[layer] / sizes[layer]]
        if not overflowing:
            break
        full.update(overflowing)
    return [
        float(limits[layer]) if layer in full else epsilon * scale * size
        for layer, (size, scale) in enumerate(zip(sizes, scales, strict=True))
    ]


def _round_to_total(quotas: list[float], limits: Sequence[int], target: int) -> list[int]:
    """Integers near the quotas, each at least 1 and within its limit, that sum to the target."""
    counts = [min(limit, max(1, math.floor(quota))) for quota, limit in zip(quotas, limits, strict=True)]

    def shortfall(layer: int) -> float:
        return quotas[layer] - counts[layer]

    # One weight at a time: layers raised to 1 may leave the rest more than one weight over.
    while (missing := target - sum(counts)) > 0:
        room = [layer for layer in range(len(limits)) if counts[layer] < limits[layer]]
        for layer in sorted(room, key=shortfall, reverse=True)[:missing]:
            counts[layer] += 1
    while (excess := sum(counts) - target) > 0:
        room = [layer for layer in range(len(limits)) if counts[layer] > 1]
        for layer in sorted(room, key=shortfall)[:excess]:
            counts[layer] -= 1
    return counts
