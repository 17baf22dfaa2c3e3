"""A model as the measurements need it: in evaluation mode for a while, copied, or dense."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sparsekern.methods.straight_through import fix_learned_masks_, learned_mask
from sparsekern.nn import SparseLayer, SparseModule, TwoFourLinearInt8, densify_

__all__ = ["ActiveEntries", "active_entries", "copy_of", "dense_copy", "in_mode"]


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

    Pruning by `torch.nn.utils.prune` is made permanent, masks of `straight_through_` are fixed, and a weight
    comes before the bias of its layer. Weights of int8 layers, which are not trained, do not require
    gradients.

    Raises
    ------
    ValueError
        For a model with DDP inside, as in `densify_`; for a pruned parameter that another layer shares
        without the same mask.
    FloatingPointError
        When a score of `straight_through_` is NaN or infinite: names the layer.
    """
    _check_shared_masks(model)
    twin = copy_of(model)
    for module in twin.modules():
        for own in _pruned_names(module):
            prune.remove(module, own)
    # A layer is replaced in what holds it.
    single = isinstance(twin, (SparseModule, TwoFourLinearInt8)) or learned_mask(twin) is not None
    holder = nn.Sequential(twin) if single else twin
    if any(learned_mask(module) is not None for module in twin.modules()):
        fix_learned_masks_(holder)
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
        The same entries as indices into the flattened stored parameter; None for layers packed 2:4 and those
        of `straight_through_`.
    trained : bool
        Whether the parameter is trained, or will be when the masks are fixed.
    """

    name: str
    parameter: nn.Parameter
    dense: Tensor
    stored: Tensor | None
    trained: bool


def active_entries(model: nn.Module, include_zeros: bool) -> list[ActiveEntries]:
    """What of each trainable parameter counts, in the order of ``model.named_parameters()``.

    The weight of a sparse layer or one of `straight_through_`, a parameter pruned by `torch.nn.utils.prune`:
    its active positions, also where they are 0. Scores: none. Another parameter of two or more dimensions:
    its entries other than 0, or all with `include_zeros`. Vectors (biases, scales): all.

    Raises
    ------
    ValueError
        When that is nothing at all; for a pruned parameter that another layer shares without the same mask.
    """
    _check_shared_masks(model)
    masked = _masked_parameters(model)
    found = []
    for name, parameter in model.named_parameters():
        entry = masked.get(name)
        if entry is None:
            flat = parameter.detach().flatten()
            every = include_zeros or parameter.dim() < 2
            dense = torch.arange(len(flat), device=flat.device) if every else flat.nonzero().flatten()
            entry = ActiveEntries(name, parameter, dense, dense, parameter.requires_grad)
        if entry.trained and len(entry.dense):
            found.append(entry)
    if not found:
        raise ValueError("model must have a trainable parameter that is not all zeros, got none")
    return found


def _masked_parameters(model: nn.Module) -> dict[str, ActiveEntries]:
    """What counts of the parameters that have masks, by the names under which the model stores them."""
    found = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, SparseModule):
            weight = module.stored_weight
            entry = ActiveEntries(f"{prefix}weight", weight, *_of_layer(module), weight.requires_grad)
            found[prefix + module.weight_name] = entry
        elif (learned := learned_mask(module)) is not None:
            weight, scores = module.parametrizations.weight.original, learned.scores
            active, none = learned.mask().flatten().nonzero().flatten(), torch.empty(0, dtype=torch.int64)
            prefix_of_scores = f"{prefix}parametrizations.weight."
            entry = ActiveEntries(f"{prefix}weight", weight, active, None, learned.was_trained)
            found[f"{prefix_of_scores}original"] = entry
            found[f"{prefix_of_scores}0.scores"] = ActiveEntries("", scores, none, none, False)
        for own in _pruned_names(module):
            weight = module._parameters[f"{own}_orig"]
            active = module._buffers[f"{own}_mask"].flatten().nonzero().flatten()
            entry = ActiveEntries(prefix + own, weight, active, active, weight.requires_grad)
            found[f"{prefix}{own}_orig"] = entry
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
