"""A loss of many examples that is computed from the losses of parts of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import describe

__all__ = ["Criterion", "Parts", "check_loss", "outside_inference", "share_of"]

Criterion = Callable[[Tensor, Tensor], Tensor]


def check_loss(loss: Any) -> Tensor:
    """Return what a criterion returned when it is a scalar."""
    if not isinstance(loss, Tensor) or not loss.is_floating_point() or loss.numel() != 1:
        raise TypeError(f"criterion must return a scalar, the mean over the examples, got {describe(loss)}")
    return loss.reshape(())


def share_of(part: Tensor, whole: Tensor) -> float:
    """The weight of a part's mean in the mean over all examples."""
    return len(part) / len(whole)


def outside_inference(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one made in inference mode, which autograd refuses."""
    return tensor.clone() if tensor.is_inference() else tensor


class Parts:
    """What the parts of a batch gave, and whether the loss of all examples follows from it.

    It does not for a criterion that sums, weights examples or leaves some out. The gradients by the outputs
    tell, example by example: they are all changed by an example that is left out, where the loss hardly is.

    Parameters
    ----------
    criterion : callable (outputs, targets) -> Tensor
    """

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion
        self._outputs: list[Any] = []
        self._losses: list[Tensor] = []

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The criterion of a part, which comes after those before it."""
        loss = check_loss(self._criterion(outputs, targets))
        rows = isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.dim() > 0
        self._outputs.append(outputs.detach() if rows else None)
        self._losses.append(loss.detach())
        return loss

    def check_mean(self, model: nn.Module, inputs: Tensor, targets: Sequence[Tensor]) -> None:
        """Raise unless the losses of the parts, weighted by their `share_of`, are the loss of all examples.

        Parameters
        ----------
        model : torch.nn.Module
            As it computed the outputs. Where these are no tensors, the losses themselves are compared, for
            which it takes all examples at once, without a graph.
        inputs : Tensor
            All of them.
        targets : sequence of Tensor
            Of each part.

        Raises
        ------
        ValueError
            When they differ by more than rounding.
        """
        if len(targets) < 2:
            return
        every = torch.cat(list(targets))
        if any(outputs is None for outputs in self._outputs):
            with torch.no_grad():
                whole = check_loss(self._criterion(model(inputs), every))
            parts = sum(loss * share_of(part, every) for loss, part in zip(self._losses, targets))
        else:
            whole = self._slopes(torch.cat(self._outputs), every)
            parts = torch.cat([self._slopes(*part) for part in zip(self._outputs, targets)])
        difference = float((parts.double() - whole.double()).norm())
        # Rounding is of a few eps. A loss that is not finite tells nothing.
        allowed = torch.finfo(whole.dtype).eps ** 0.75 * float(whole.double().norm())
        if math.isfinite(allowed) and not difference <= allowed:
            raise ValueError(
                "criterion must be a mean over the examples, or examples_at_once at least their number, "
                f"{len(inputs)}, got a loss of all that is not the mean of those of {len(targets)} parts"
            )

    def _slopes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The gradient by the outputs of the sum over examples that the criterion should be the mean of."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = outside_inference(outputs).detach().requires_grad_()
            loss = check_loss(self._criterion(leaf.clone(), outside_inference(targets)))
            if not loss.requires_grad:
                return torch.zeros_like(leaf)
            scale = torch.full_like(loss, len(targets))
            return torch.autograd.grad(loss, leaf, scale, allow_unused=True, materialize_grads=True)[0]
