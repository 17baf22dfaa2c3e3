"""The gradient on a batch of the user's, taken for an update alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern.formats.checks import describe
from sparsekern.methods.driven_layer import DrivenLayer

__all__ = ["watch_holdout"]


def watch_holdout(loss_of: Callable[[], Any], layers: Sequence[DrivenLayer]) -> dict[str, Tensor]:
    """Let the layers' watches see the gradient of ``loss_of()``; no ``grad`` is written.

    Returns
    -------
    dict of str to Tensor
        By layer name, the gradient at the active positions ``(nnz,)``, with all that is in the loss beside
        the layers' outputs; 0 where the loss does not depend on the weight.

    Raises
    ------
    TypeError
        When the function returns no scalar that depends on the weights.
    """
    for layer in layers:
        layer.watch_gradient(True, confirmed=False)
    try:
        with torch.enable_grad():
            loss = loss_of()
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise TypeError(
                    f"holdout must return a loss, a scalar that requires a gradient, got {describe(loss)}"
                )
            found = torch.autograd.grad(loss, [layer.parameter for layer in layers], allow_unused=True)
    finally:
        for layer in layers:
            kept = list(layer.watch.kept)
            layer.watch_gradient(False)
            layer.watch.kept = kept
    return {layer.name: _at_active(layer, grad) for layer, grad in zip(layers, found)}


def _at_active(layer: DrivenLayer, grad: Tensor | None) -> Tensor:
    # In every process: what it holds is summed over all of them.
    if grad is None:
        return layer.parameter.new_zeros(layer.pattern.nnz)
    return layer.at_active(grad.detach())
