"""The exact Hessian of a loss over the weights that are there, and its spectrum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsekern.analysis.arguments import check_callable, check_examples, check_network
from sparsekern.analysis.networks import ActiveEntries, active_entries, dense_copy
from sparsekern.analysis.shares import Criterion, Parts, check_loss, share_of
from sparsekern.formats.checks import check_bool, check_integer

__all__ = ["Hessian", "hessian"]


@dataclass(frozen=True)
class Hessian:
    """Second derivatives of a loss.

    Attributes
    ----------
    matrix : Tensor
        ``(n, n)``, float64, on the CPU, exactly symmetric.
    names : dict of str to slice
        Which rows, and columns, are of which parameter of the dense model; entries of a weight are in
        row-major order of the dense weight.
    """

    matrix: Tensor
    names: dict[str, slice]

    def eigenvalues(self) -> Tensor:
        """All n eigenvalues, ascending, float64.

        Raises
        ------
        ValueError
            When the matrix has NaN or infinity.
        """
        if not bool(self.matrix.isfinite().all()):
            raise ValueError("matrix must be finite to have eigenvalues, got NaN or infinity")
        return torch.linalg.eigvalsh(self.matrix)


def hessian(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    criterion: Criterion = F.cross_entropy,
    *,
    include_zeros: bool = False,
    examples_at_once: int = 200,
    columns_at_once: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Hessian:
    r"""The Hessian of the mean loss with respect to the active weights and the biases.

    .. math:: H_{ij} = \frac{\partial^2}{\partial \theta_i \, \partial \theta_j}
              \frac{1}{N} \sum_{n=1}^{N} \ell(f_\theta(x_n), y_n)

    It is exact: nothing is sampled or approximated. Column by column, it is the derivative of the gradient
    along a coordinate (forward over reverse). For the columns of a parameter only the rows from that
    parameter on are computed, with all parameters before it held constant, and symmetry gives the rest: so
    the columns of the last layers never differentiate the first ones. That is fastest where modules are
    registered in the order in which they run; the result does not depend on it.

    The coordinates are entries of trainable parameters: of a sparse layer's weight, and of a parameter pruned
    by `torch.nn.utils.prune`, the active positions, whatever their values; of a layer of `straight_through_`
    those that `fix_learned_masks_` would keep, and no scores; of another parameter of two or more dimensions
    those that are not exactly 0; of vectors (biases, scales of normalizations) all.

    Parameters
    ----------
    model : torch.nn.Module
        With dense or sparse layers, in evaluation mode for the time; left unchanged. It treats the examples
        of a batch one by one.
    inputs : Tensor
        ``(N, ...)``, on the model's device.
    targets : Tensor
        ``(N, ...)``, what `criterion` takes.
    criterion : callable (outputs, targets) -> Tensor
        The mean over the examples of a loss; the cross-entropy of logits by default.
    include_zeros : bool
        Also take the entries that are 0 of weights that are not a sparse layer's.
    examples_at_once, columns_at_once : int
        How many are computed in one go. Memory is proportional to their product; the defaults suit a CPU,
        and a GPU is faster with more examples. With fewer examples than there are, `criterion` has to be a
        mean over them, and no other sum, nor one that weights examples or leaves some out.
    progress : callable (done, total) -> None, optional
        Called after each block with numbers of columns.

    Returns
    -------
    Hessian
        Derivatives are computed in the model's dtype; sums over parts of the examples in float64.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, there is nothing to differentiate by, or `criterion` is no mean
        over the examples and takes them in parts.
    NotImplementedError, RuntimeError
        From PyTorch, for an operation of the model without the forward derivative of its gradient.

    References
    ----------
    Evci, Ioannou, Keskin, Dauphin, *Gradient flow in sparse neural networks and how lottery tickets win*
    (2022): the spectra of LeNet-5 before and during training.
    """
    model = check_network(model)
    check_examples(inputs, targets, model)
    check_callable(criterion, "criterion", "(outputs, targets) -> loss")
    check_bool(include_zeros, "include_zeros")
    check_integer(examples_at_once, "examples_at_once")
    check_integer(columns_at_once, "columns_at_once")
    if progress is not None:
        check_callable(progress, "progress", "(done, total), or None")
    entries = active_entries(model, include_zeros)
    twin = dense_copy(model).eval()
    batches = list(zip(inputs.split(examples_at_once), targets.split(examples_at_once)))
    # Checked once on its own: inside of vmap an error would be wrapped in others.
    parts = Parts(criterion)
    with torch.no_grad():
        for x, y in batches:
            parts.loss(twin(x), y)
        parts.check_mean(twin, inputs, [y for _, y in batches])

    ends = torch.tensor([len(entry.dense) for entry in entries]).cumsum(0).tolist()
    names = {entry.name: slice(end - len(entry.dense), end) for entry, end in zip(entries, ends)}
    matrix = torch.empty(ends[-1], ends[-1], dtype=torch.float64)
    for number, entry in enumerate(entries):
        rows = names[entry.name]
        columns = _columns_of(twin, entries[number:], criterion)
        done = rows.start
        for tangents in _unit_tangents(entry, twin, columns_at_once):
            block = sum(columns(tangents, x, y).double() * share_of(x, inputs) for x, y in batches)
            matrix[done : done + len(tangents), rows.start :] = block.cpu()
            done += len(tangents)
            if progress is not None:
                progress(done, ends[-1])
    return Hessian(_symmetric(matrix, names), names)


def _unit_tangents(entry: ActiveEntries, twin: nn.Module, count: int) -> Iterator[Tensor]:
    """The coordinate vectors of one parameter, `count` at a time: ``(count, *shape)``."""
    weight = twin.get_parameter(entry.name)
    for positions in entry.dense.split(count):
        tangents = torch.zeros(len(positions), weight.numel(), dtype=weight.dtype, device=weight.device)
        tangents.scatter_(1, positions[:, None], 1)
        yield tangents.view(-1, *weight.shape)


def _columns_of(
    twin: nn.Module, entries: list[ActiveEntries], criterion: Criterion
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The derivative, along changes of the first parameter, of the gradient by all: a row for each change."""
    weights = {entry.name: twin.get_parameter(entry.name).detach() for entry in entries}
    first = entries[0].name

    def columns(tangents: Tensor, x: Tensor, y: Tensor) -> Tensor:
        def gradient(weight: Tensor) -> dict[str, Tensor]:
            # F.mse_loss cannot be differentiated forward over reverse for targets that are constant to the
            # forward differentiation. Plus this 0, they are not, and their values stay as they are.
            desired = y + 0 * weight.sum() if y.is_floating_point() else y

            def loss(variables: dict[str, Tensor]) -> Tensor:
                return check_loss(criterion(functional_call(twin, variables, (x,)), desired))

            return grad(loss)({**weights, first: weight})

        def change(tangent: Tensor) -> dict[str, Tensor]:
            return jvp(gradient, (weights[first],), (tangent,))[1]

        # Only the plain formula of attention has second derivatives. Without no_grad, a graph would be
        # recorded for the parameters themselves as well.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            changes = vmap(change)(tangents)
        count = len(tangents)
        return torch.cat([changes[entry.name].reshape(count, -1)[:, entry.dense] for entry in entries], 1)

    return columns


def _symmetric(matrix: Tensor, names: dict[str, slice]) -> Tensor:
    """Fills, in place, what is below the blocks of the diagonal; both halves of those blocks are averaged."""
    for own in names.values():
        block = matrix[own, own]
        matrix[own, own] = (block + block.T) / 2
        matrix[own.stop :, own] = matrix[own, own.stop :].T
    return matrix
