"""A model as the measurements need it: in evaluation mode for a while, in parts of a batch, or dense."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sparsekern.nn import SparseLayer, SparseModule, TwoFourLinearInt8, densify_

__all__ = ["ActiveEntries", "active_entries", "copy_of", "dense_copy", "in_mode", "share_of"]


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


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy, also of what `torch.nn.utils.prune` and the older ``weight_norm`` computed by hooks."""
    # What hooks compute before each forward pass has a graph, and a tensor that has one cannot be copied: its
    # values stand in for it, until it is computed anew.
    computed = (
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    )
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def dense_copy(model: nn.Module) -> nn.Module:
    """A copy of the model in which dense layers compute what sparse ones did; nothing is shared.

    Pruning by `torch.nn.utils.prune` is made permanent, and a weight comes before the bias of its layer.
    Weights of int8 layers, which are not trained, do not require gradients.

    Raises
    ------
    ValueError
        For a model with DDP inside, as in `densify_`; for a pruned parameter that another layer shares
        without the same mask.
    """
    _check_shared_masks(model)
    twin = copy_of(model)
    for module in twin.modules():
        for own in _pruned_names(module):
            prune.remove(module, own)
    # A layer is replaced in what holds it.
    single = isinstance(twin, (SparseModule, TwoFourLinearInt8))
    holder = nn.Sequential(twin) if single else twin
    densify_(holder)
    twin = holder[0] if single else holder
    for name, module in model.named_modules():
        if isinstance(module, TwoFourLinearInt8):
            twin.get_submodule(name).requires_grad_(False)
    for module in twin.modules():
        own_parameters = module._parameters
        names = list(own_parameters)
        # Pruning registers the weight anew, after the bias.
        if {"weight", "bias"} <= set(names) and names.index("bias") < names.index("weight"):
            own_parameters["bias"] = own_parameters.pop("bias")
    return twin


def _pruned_names(module: nn.Module) -> list[str]:
    """The parameters of a module's own that `torch.nn.utils.prune` multiplies with masks."""
    return [
        hook._tensor_name
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]


def _check_shared_masks(model: nn.Module) -> None:
    """Raise unless layers that share a pruned parameter prune it alike: else their weights are several."""
    masks: dict[int, tuple[str, Tensor | None]] = {}
    for prefix, module in model.named_modules():
        pruned = {f"{own}_orig": module._buffers[f"{own}_mask"] for own in _pruned_names(module)}
        for own, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{prefix}.{own}" if prefix else own
            mask = pruned.get(own)
            first, other = masks.setdefault(id(parameter), (name, mask))
            if (mask is None) != (other is None) or (mask is not None and not torch.equal(mask, other)):
                raise ValueError(
                    "model must prune a shared parameter in all layers alike, got different masks of "
                    f"{first!r} and {name!r}"
                )


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

    The weight of a sparse layer, or a parameter pruned by `torch.nn.utils.prune`: its active positions, also
    where they are 0. Another parameter of two or more dimensions: its entries other than 0, or all with
    `include_zeros`. Vectors (biases, scales): all.

    Raises
    ------
    ValueError
        When that is nothing at all; for a pruned parameter that another layer shares without the same mask.
    """
    _check_shared_masks(model)
    masked = _masked_parameters(model)
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in masked:
            name, dense, stored = masked[name]
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


def _masked_parameters(model: nn.Module) -> dict[str, tuple[str, Tensor, Tensor | None]]:
    """By the name of a stored parameter that has a mask: its dense name, and what `ActiveEntries` has."""
    found = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, SparseModule):
            found[prefix + module.weight_name] = (f"{prefix}weight", *_of_layer(module))
        for own in _pruned_names(module):
            active = module._buffers[f"{own}_mask"].flatten().nonzero().flatten()
            found[f"{prefix}{own}_orig"] = (prefix + own, active, active)
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
