"""The spectrum of a matrix that is only known by its products: Lanczos, and the Hessian's products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsekern.analysis.arguments import check_callable, check_examples, check_network, check_vector
from sparsekern.analysis.networks import ActiveEntries, active_entries, in_mode
from sparsekern.analysis.shares import Criterion, Parts, outside_inference, share_of
from sparsekern.formats.checks import check_bool, check_generator, check_integer, check_positive, describe

__all__ = [
    "ExtremeEigenvalues",
    "SpectralDensity",
    "Tridiagonal",
    "active_size",
    "extreme_eigenvalues",
    "hessian_vector_product",
    "lanczos",
    "spectral_density",
]

Matvec = Callable[[Tensor], Tensor]
# The default width's square over the spectrum's range.
RELATIVE_VARIANCE = 1e-5
# How far the default grid goes beyond the eigenvalues, in widths: 1e-6 of a Gaussian's mass is further out.
GRID_MARGIN = 5.0
GRID_POINTS = 2001


def active_size(model: nn.Module, *, include_zeros: bool = False) -> int:
    """Number of coordinates of the model's Hessian: rows of `hessian`'s matrix.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of what `hessian` takes.
    """
    model = check_network(model)
    entries = active_entries(model, check_bool(include_zeros, "include_zeros"))
    return sum(len(entry.dense) for entry in entries)


def hessian_vector_product(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    vector: Tensor,
    criterion: Criterion = F.cross_entropy,
    *,
    include_zeros: bool = False,
    examples_at_once: int = 1000,
) -> Tensor:
    r"""H v, with the H of `hessian` and without forming it.

    .. math:: H v = \nabla_\theta \left( v^\top \nabla_\theta L(\theta) \right)

    by differentiating twice backward, at the cost of about four evaluations. Sparse layers are differentiated
    as they are, so time and memory follow from their nonzeros.

    Parameters
    ----------
    model, inputs, targets, criterion, include_zeros
        As for `hessian`; the coordinates are the same, in the same order. Layers packed 2:4 and those of
        `straight_through_` are refused, since their gradients are not those of a function: use
        ``sparsekern.densify_`` or `fix_learned_masks_` on a copy.
    vector : Tensor
        ``(n,)``, n being ``active_size(model)``; any floating-point dtype, cast to the parameters'.
    examples_at_once : int
        Memory is proportional to it. With fewer than there are, `criterion` has to be a mean over them, and
        no other sum, nor one that weights examples or leaves some out.

    Returns
    -------
    Tensor
        ``(n,)``, float64, on the device of `vector`.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or `criterion` is no mean over the examples and takes them in
        parts. The model, its modes and its ``grad`` are left unchanged in any case.

    References
    ----------
    Pearlmutter, *Fast exact multiplication by the Hessian* (1994).
    """
    model = check_network(model)
    check_examples(inputs, targets, model)
    check_callable(criterion, "criterion", "(outputs, targets) -> loss")
    check_integer(examples_at_once, "examples_at_once")
    entries = active_entries(model, check_bool(include_zeros, "include_zeros"))
    for entry in entries:
        if entry.stored is None:
            raise TypeError(
                "model must not have layers packed 2:4 or of straight_through_, whose gradients are not "
                f"those of a function, got {entry.name!r}; use densify_ or fix_learned_masks_ on a copy"
            )
    check_vector(vector, "vector", sum(len(entry.dense) for entry in entries))
    batches = list(zip(inputs.split(examples_at_once), targets.split(examples_at_once)))
    parts = Parts(criterion)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        in_mode(model, False),
    ):
        # Made in here: a tensor made in inference mode could not be changed, nor saved for a gradient.
        total = torch.zeros(len(vector), dtype=torch.float64, device=vector.device)
        directions = _directions(entries, vector)
        for x, y in batches:
            loss = parts.loss(model(outside_inference(x)), outside_inference(y))
            products = _product(loss, [entry.parameter for entry in entries], directions)
            found = [product.flatten()[entry.stored] for product, entry in zip(products, entries)]
            total += torch.cat(found).to(total) * share_of(x, inputs)
        parts.check_mean(model, inputs, [y for _, y in batches])
    return total


def _directions(entries: list[ActiveEntries], vector: Tensor) -> list[Tensor]:
    """The vector in the shapes of the parameters, with zeros where these have no coordinates."""
    directions = []
    for entry, part in zip(entries, vector.detach().split([len(entry.dense) for entry in entries])):
        direction = torch.zeros_like(entry.parameter).flatten()
        direction[entry.stored] = part.to(direction)
        directions.append(direction.view_as(entry.parameter))
    return directions


def _product(loss: Tensor, parameters: list[nn.Parameter], directions: list[Tensor]) -> tuple[Tensor, ...]:
    """The Hessian of one loss times a vector, a tensor for each parameter."""
    if not loss.requires_grad:
        raise ValueError(
            "criterion must return a loss that depends on the model's parameters, got one that does not"
        )
    options = {"allow_unused": True, "materialize_grads": True}
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, **options)
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions))
    if not slope.requires_grad:  # the loss is linear in all parameters
        return tuple(torch.zeros_like(parameter) for parameter in parameters)
    return torch.autograd.grad(slope, parameters, **options)


@dataclass(frozen=True)
class Tridiagonal:
    """What Lanczos makes of a symmetric matrix: T = Q^T A Q with orthonormal columns of Q.

    Attributes
    ----------
    diagonal : Tensor
        ``(m,)``, float64, on the CPU.
    off_diagonal : Tensor
        ``(m - 1,)``.
    rest : float
        Norm of what a further step would begin with: 0 where the Krylov space is exhausted, and then the
        eigenvalues of T are ones of A.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    rest: float

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues of T ascending, their weights in the start vector, and bounds of their errors.

        Returns
        -------
        values : Tensor
            ``(m,)``: the Ritz values.
        weights : Tensor
            ``(m,)``: squares of the eigenvectors' first components, which sum to 1.
        errors : Tensor
            ``(m,)``: A has an eigenvalue at most this far from the Ritz value.
        """
        matrix = torch.diag(self.diagonal)
        matrix += torch.diag(self.off_diagonal, 1) + torch.diag(self.off_diagonal, -1)
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors[0].square(), self.rest * vectors[-1].abs()


def lanczos(
    matvec: Matvec,
    size: int,
    steps: int,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Tridiagonal:
    r"""The Lanczos iteration from a random start, with full reorthogonalization.

    .. math:: \beta_{k} q_{k+1} = A q_k - \alpha_k q_k - \beta_{k-1} q_{k-1}, \qquad \alpha_k = q_k^\top A q_k

    Each new vector is made orthogonal to all before it, twice, which keeps Q orthonormal to rounding; without
    it eigenvalues would be found again and again.

    Parameters
    ----------
    matvec : callable (Tensor) -> Tensor
        v to A v for a symmetric A, both ``(size,)``; v is float64 on `device`.
    size : int
        Rows of A.
    steps : int
        Products with A; at most `size` are made, and fewer where the Krylov space is exhausted.
    generator : torch.Generator, optional
        On the CPU: the source of the start vector, uniform on the sphere. PyTorch's own if None.
    device : torch.device or str
        Where the vectors are, ``steps * size`` float64.

    Returns
    -------
    Tridiagonal

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or `matvec` returns another shape, NaN or infinity.

    References
    ----------
    Golub, Van Loan, *Matrix computations* (4th edition, 2013), Section 10.3.
    """
    check_callable(matvec, "matvec", "(vector) -> product")
    check_integer(size, "size")
    check_integer(steps, "steps")
    check_generator(generator)
    vector = torch.randn(size, dtype=torch.float64, generator=generator).to(device)
    basis = torch.zeros(min(steps, size), size, dtype=torch.float64, device=device)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    rest = float(vector.norm())
    for step in range(len(basis)):
        if step:
            off_diagonal.append(rest)
        basis[step] = vector / rest
        product = _checked_product(matvec(basis[step].clone()), size).to(basis)
        diagonal.append(float(basis[step] @ product))
        vector = product
        for _ in range(2):
            vector = vector - basis[: step + 1].T @ (basis[: step + 1] @ vector)
        rest = float(vector.norm())
        # Below this, the rest is nothing but rounding, and no direction.
        if rest <= size * torch.finfo(torch.float64).eps * float(product.norm()):
            rest = 0.0
            break
    numbers = (torch.tensor(part, dtype=torch.float64) for part in (diagonal, off_diagonal))
    return Tridiagonal(*numbers, rest)


def _checked_product(product: Tensor, size: int) -> Tensor:
    if not isinstance(product, Tensor) or tuple(product.shape) != (size,):
        raise ValueError(f"matvec must return a tensor of shape ({size},), got {describe(product)}")
    if not bool(product.isfinite().all()):
        raise ValueError("matvec must return finite numbers, got NaN or infinity")
    return product.detach()


class ExtremeEigenvalues(NamedTuple):
    """The ends of a spectrum."""

    smallest: float
    largest: float


def extreme_eigenvalues(
    matvec: Matvec,
    size: int,
    *,
    steps: int = 100,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> ExtremeEigenvalues:
    """The smallest (most negative) and the largest (most positive) eigenvalue of a symmetric matrix.

    They are the ends of the Ritz values of `lanczos`, which lie within the spectrum and converge to its ends
    first. Exact to rounding once `steps` reaches the number of different eigenvalues.

    Parameters, errors and source are those of `lanczos`.
    """
    values, _, _ = lanczos(matvec, size, steps, generator, device=device).ritz()
    return ExtremeEigenvalues(float(values[0]), float(values[-1]))


@dataclass(frozen=True)
class SpectralDensity:
    """The density of a matrix's eigenvalues, smoothed.

    Attributes
    ----------
    grid : Tensor
        ``(points,)``, float64, ascending: where it is known.
    density : Tensor
        ``(points,)``: eigenvalues per unit of `grid`, as a fraction of all; integrates to 1.
    width : float
        Standard deviation of the Gaussian that stands for an eigenvalue.
    """

    grid: Tensor
    density: Tensor
    width: float


def spectral_density(
    matvec: Matvec,
    size: int,
    *,
    steps: int = 90,
    probes: int = 10,
    width: float | None = None,
    grid: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> SpectralDensity:
    r"""The density of a symmetric matrix's eigenvalues by stochastic Lanczos quadrature.

    .. math:: \varphi(t) = \frac{1}{k} \sum_{i=1}^{k} \sum_{l=1}^{m} \omega_l^{(i)}
              \, \mathcal{N}(t; \theta_l^{(i)}, \sigma^2)

    with the Ritz values theta and weights omega of m Lanczos steps from each of k random vectors. Without the
    Gaussians, it has the first 2m moments of the matrix in each start vector, whose mean over starts is that
    of the spectrum.

    Parameters
    ----------
    matvec, size, steps, generator, device
        As for `lanczos`, once for each probe.
    probes : int
        k: the error falls as 1 / sqrt(k * size).
    width : float, optional
        sigma, by default ``sqrt(1e-5) * range`` of the Ritz values: 0.3 % of it.
    grid : Tensor, optional
        Where to evaluate, one dimension; by default 2001 points that reach 5 widths beyond the Ritz values.

    Returns
    -------
    SpectralDensity

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.

    References
    ----------
    Ghorbani, Krishnan, Xiao, *An investigation into neural net optimization via Hessian eigenvalue density*
    (2019), Section 2. Their code's variance is 1e-5 times the larger of 1 and the range; here the width
    follows the range alone, so that scaling the matrix scales the result.
    """
    check_integer(probes, "probes")
    if width is not None:
        check_positive(width, "width")
    if grid is not None and (not isinstance(grid, Tensor) or grid.dim() != 1 or not grid.is_floating_point()):
        raise TypeError(
            f"grid must be a floating-point tensor of one dimension, or None, got {describe(grid)}"
        )
    found = [lanczos(matvec, size, steps, generator, device=device).ritz() for _ in range(probes)]
    values = torch.cat([ritz for ritz, _, _ in found])
    weights = torch.cat([weight for _, weight, _ in found]) / probes
    low, high = float(values.min()), float(values.max())
    if width is None:
        # Equal eigenvalues have a range of rounding errors, or none; their size is the next best scale.
        size_of_all = max(abs(low), abs(high))
        spread = high - low if high - low > 1e-12 * size_of_all else size_of_all or 1.0
        width = math.sqrt(RELATIVE_VARIANCE) * spread
    if grid is None:
        margin = GRID_MARGIN * width
        grid = torch.linspace(low - margin, high + margin, GRID_POINTS, dtype=torch.float64)
    grid = grid.detach().to("cpu", torch.float64)
    density = torch.zeros_like(grid)
    for value, weight in zip(values.tolist(), weights.tolist()):
        density += weight * torch.exp(-((grid - value) / width).square() / 2)
    return SpectralDensity(grid, density / (width * math.sqrt(2 * math.pi)), float(width))
