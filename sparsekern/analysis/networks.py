"""A model as the measurements need it: in evaluation mode for a while, in parts of a batch, or dense."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsekern.nn import SparseLayer, SparseModule, TwoFourLinearInt8, densify_

__all__ = ["ActiveEntries", "active_entries", "dense_copy", "in_mode", "share_of"]


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """All modules are in training or evaluation mode inside; each has its own flag back afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def dense_copy(model: nn.Module) -> nn.Module:
    """A copy of the model in which dense layers compute what sparse ones did; nothing is shared.

    Weights of int8 layers, which are not trained, do not require gradients.

    Raises
    ------
    ValueError
        For a model wrapped in DDP, as in `densify_`.
    """
    if isinstance(model, (SparseModule, TwoFourLinearInt8)):
        twin = model.to_dense_module()
    else:
        twin = copy.deepcopy(model)
        densify_(twin)
    for name, module in model.named_modules():
        if isinstance(module, TwoFourLinearInt8):
            twin.get_submodule(name).requires_grad_(False)
    return twin


def share_of(part: Tensor, whole: Tensor) -> float:
    """The weight of a part's mean in the mean over all examples."""
    return len(part) / len(whole)


@dataclass(frozen=True)
class ActiveEntries:
    """The coordinates that one parameter contributes to the Hessian.

    Attributes
    ----------
    name : str
        Of the parameter in the dense model.
    parameter : torch.nn.Parameter
        The one that the model stores.
    dense : Tensor
        int64, ascending: indices into the flattened dense parameter.
    stored : Tensor or None
        The same entries as indices into the flattened stored parameter; None for 2:4 layers.
    """

    name: str
    parameter: nn.Parameter
    dense: Tensor
    stored: Tensor | None


def active_entries(model: nn.Module, include_zeros: bool) -> list[ActiveEntries]:
    """What of each trainable parameter counts, in the order of ``model.named_parameters()``.

    The weight of a sparse layer: its active positions, also where they are 0. Another parameter of two or
    more dimensions: its entries other than 0, or all with `include_zeros`. Vectors (biases, scales): all.

    Raises
    ------
    ValueError
        When that is nothing at all.
    """
    layers = {
        f"{name}.{layer.weight_name}" if name else layer.weight_name: (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, SparseModule)
    }
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in layers:
            prefix, layer = layers[name]
            dense, stored = _of_layer(layer)
            name = f"{prefix}.weight" if prefix else "weight"
        else:
            flat = parameter.detach().flatten()
            every = include_zeros or parameter.dim() < 2
            dense = torch.arange(len(flat), device=flat.device) if every else flat.nonzero().flatten()
            stored = dense
        if len(dense):
            found.append(ActiveEntries(name, parameter, dense, stored))
    if not found:
        raise ValueError("model must have a trainable parameter that is not all zeros, got none")
    return found


def _of_layer(layer: SparseModule) -> tuple[Tensor, Tensor | None]:
    """Indices of a sparse layer's active entries in the dense weight, and in the stored one."""
    dense = layer.mask.flatten().nonzero().flatten()
    if not isinstance(layer, SparseLayer):
        return dense, None
    if layer.storage == "masked":
        return dense, dense
    # Values are stored tile by tile: their numbers, put where they belong, tell which is where.
    numbers = torch.arange(layer.pattern.nnz, device=dense.device)
    return dense, layer.pattern.unpack(numbers).flatten()[dense]
