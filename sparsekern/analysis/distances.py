"""Distances between networks in weight space, and a map of them in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsekern.analysis.arguments import check_network, check_several, check_square, check_vector
from sparsekern.analysis.networks import dense_copy
from sparsekern.formats.checks import check_bool, check_integer

__all__ = ["Embedding", "distance_matrix", "flat_weights", "l2_distance", "mds"]

# Random starts, of which the one with the smallest stress is kept, and when to stop.
STARTS = 8
MAX_ITERATIONS = 3000
TOLERANCE = 1e-10


def flat_weights(model: nn.Module, *, biases: bool = True) -> Tensor:
    """All trainable parameters of the dense network as one vector, with zeros where a sparse layer has none.

    Networks of one architecture have vectors of one length, whatever their patterns and storage. Weights that
    `torch.nn.utils.prune` or the masks of `straight_through_` remove are 0; scores are left out.

    Parameters
    ----------
    model : torch.nn.Module
        Left unchanged.
    biases : bool
        Whether to take vectors (biases, scales of normalizations) too, or only parameters of two or more
        dimensions.

    Returns
    -------
    Tensor
        ``(size,)``, float64, on the CPU; row-major, in the order of ``named_parameters()``; but a weight
        always comes before its layer's bias.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or no such parameter is there.
    """
    model = check_network(model)
    check_bool(biases, "biases")
    parts = [
        parameter.detach().flatten().to("cpu", torch.float64)
        for parameter in dense_copy(model).parameters()
        if parameter.requires_grad and (biases or parameter.dim() >= 2)
    ]
    if not parts:
        raise ValueError("model must have a trainable parameter of the wanted kind, got none")
    return torch.cat(parts)


def l2_distance(a: nn.Module | Tensor, b: nn.Module | Tensor, *, biases: bool = True) -> float:
    r"""Euclidean distance of two networks, :math:`\lVert \theta_a - \theta_b \rVert_2`.

    Parameters
    ----------
    a, b : torch.nn.Module or Tensor
        Networks of one architecture, or their `flat_weights`.
    biases : bool
        As for `flat_weights`.

    Returns
    -------
    float
        Computed in float64.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or the two differ in size.
    """
    first = _vector(a, "a", biases)
    second = _vector(b, "b", biases)
    if len(first) != len(second):
        raise ValueError(f"b must have as many weights as a, {len(first)}, got {len(second)}")
    return float((first - second).norm())


def distance_matrix(models: Sequence[nn.Module | Tensor], *, biases: bool = True) -> Tensor:
    """`l2_distance` of each pair.

    Parameters
    ----------
    models : sequence of torch.nn.Module or Tensor
        n networks of one architecture, or their `flat_weights`.
    biases : bool
        As for `flat_weights`.

    Returns
    -------
    Tensor
        ``(n, n)``, float64, on the CPU; symmetric with zeros on the diagonal.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or two differ in size.
    """
    given = check_several(models, "models", 1, "networks or vectors of their weights")
    vectors = [_vector(model, f"models[{number}]", biases) for number, model in enumerate(given)]
    matrix = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for i, first in enumerate(vectors):
        for j, second in enumerate(vectors[:i]):
            if len(first) != len(second):
                raise ValueError(
                    f"models[{i}] must have as many weights as models[{j}], {len(second)}, got {len(first)}"
                )
            # The difference itself: with inner products, near networks would lose all digits.
            matrix[i, j] = matrix[j, i] = (first - second).norm()
    return matrix


def _vector(model: Any, name: str, biases: bool) -> Tensor:
    if isinstance(model, Tensor):
        return check_vector(model, name, model.numel()).detach().to("cpu", torch.float64)
    return flat_weights(check_network(model, name), biases=biases)


class Embedding(NamedTuple):
    """Points whose distances are about the given ones."""

    coordinates: Tensor
    stress: float


def mds(distances: Tensor, dimensions: int = 2, seed: int = 0) -> Embedding:
    r"""Metric multidimensional scaling: points in the plane whose distances are as near as can be.

    .. math:: \min_X \; \sigma(X) = \sum_{i < j} \left( \lVert X_i - X_j \rVert_2 - \delta_{ij} \right)^2

    by scikit-learn's SMACOF, from 8 random starts, of which the best is kept. The result is unique at most up
    to rotations, reflections and shifts; it is centred at 0.

    Parameters
    ----------
    distances : Tensor
        ``(n, n)``, delta: as from `distance_matrix`.
    dimensions : int
        Of the points.
    seed : int
        Of the starts. The same seed gives the same points.

    Returns
    -------
    Embedding
        ``coordinates`` ``(n, dimensions)``, float64, in the units of `distances`; ``stress``, sigma, in their
        square.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.
    ImportError
        Without the package scikit-learn.

    References
    ----------
    Evci, Ioannou, Keskin, Dauphin, *Gradient flow in sparse neural networks and how lottery tickets win*
    (2022): pruned networks and tickets in the plane; Borg, Groenen, *Modern multidimensional scaling* (2005),
    Chapter 8.
    """
    wanted = check_square(distances, "distances")
    check_integer(dimensions, "dimensions")
    check_integer(seed, "seed", 0)
    try:
        from sklearn.manifold import smacof
    except ImportError as error:
        raise ImportError("mds needs the package scikit-learn: pip install scikit-learn") from error
    scale = float(wanted.max())
    if scale == 0:
        return Embedding(torch.zeros(len(wanted), dimensions, dtype=torch.float64), 0.0)
    # The function, not the class MDS, whose arguments have changed their names and defaults. Distances of
    # about 1 keep its constants against division by 0 small.
    points, _ = smacof(
        (wanted / scale).numpy(),
        metric=True,
        n_components=dimensions,
        n_init=STARTS,
        max_iter=MAX_ITERATIONS,
        eps=TOLERANCE,
        random_state=seed,
        normalized_stress=False,
    )
    coordinates = torch.from_numpy(points).double() * scale
    coordinates -= coordinates.mean(0)
    lengths = torch.cdist(coordinates, coordinates, compute_mode="donot_use_mm_for_euclid_dist")
    stress = (lengths - wanted).square().sum() / 2
    return Embedding(coordinates, float(stress))
