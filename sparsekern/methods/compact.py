"""`compact_`: from masked weights to values of nnz size, in the middle of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.formats.pattern import Pattern
from sparsekern.methods.arguments import check_model, check_optimizer
from sparsekern.methods.driven_layer import check_unmoved
from sparsekern.methods.optimizer_state import check_holds_any, check_states
from sparsekern.nn import SparseLayer
from sparsekern.nn.checks import check_unwrapped

__all__ = ["check_compactable", "compact_", "compact_layers", "replace_parameter"]


def compact_(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[str]:
    """Turns every sparse layer with ``storage="masked"`` into a compact one, in place.

    Each gets a new Parameter ``values`` (nnz,) with the active weights; a gradient and the optimizer's state
    move along, so that training goes on exactly where it was, and memory falls to nnz size. Layers that share
    a weight go on sharing it. EMA copies, DDP and compiled graphs know the old Parameters: make them anew.

    Parameters
    ----------
    model : torch.nn.Module
    optimizer : torch.optim.Optimizer, optional
        The one that trains it: the new Parameters take the places of the old in its groups. Call this
        between its steps. Without it, make the optimizer afterwards.

    Returns
    -------
    list of str
        The names of the layers turned; empty when there was none.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, the model is wrapped in DDP or sharded, a method moves one of
        the layers, or the optimizer holds none of their weights or has state for one that is not per
        element. Nothing has been changed then.
    """
    check_model(model)
    check_optimizer(optimizer, optional=True)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SparseLayer) and module.storage == "masked"
    }
    check_compactable(model, layers)
    check_unmoved(layers)
    if optimizer is not None:
        check_holds_any(optimizer, {name: layer.stored_weight for name, layer in layers.items()})
        for name, layer in layers.items():
            check_states(optimizer, layer.stored_weight, name)
    compact_layers(layers, optimizer)
    return list(layers)


def check_compactable(model: nn.Module, layers: Mapping[str, SparseLayer]) -> None:
    """Raise ValueError where DDP or FSDP2 hold the Parameters that would be replaced."""
    check_unwrapped(model)
    for name, layer in layers.items():
        if hasattr(layer.stored_weight, "full_tensor"):
            raise ValueError(f"model must not be sharded by FSDP2, got layer {name!r} that is")


def compact_layers(layers: Mapping[str, SparseLayer], optimizer: torch.optim.Optimizer | None) -> None:
    """What `compact_` does, unchecked, to some layers: all of those that share a weight, or none."""
    replaced: dict[int, nn.Parameter] = {}
    for layer in layers.values():
        old = layer.stored_weight
        if id(old) not in replaced:
            replaced[id(old)] = _packed(old, layer.pattern)
            if optimizer is not None:
                replace_parameter(optimizer, old, replaced[id(old)], layer.pattern)
        layer.make_compact(replaced[id(old)])


def _packed(weight: nn.Parameter, pattern: Pattern) -> nn.Parameter:
    values = nn.Parameter(ops.pack(weight.detach(), pattern), requires_grad=weight.requires_grad)
    if weight.grad is not None:
        values.grad = ops.pack(weight.grad, pattern)
    return values


def replace_parameter(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, pattern: Pattern
) -> None:
    """The values of a pattern take the place of the dense weight in the optimizer's groups and state."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    if old not in optimizer.state:
        return

    def moved(value: Any) -> Any:
        is_per_weight = isinstance(value, Tensor) and value.dim() > 0 and value.shape == old.shape
        return ops.pack(value, pattern) if is_per_weight else value

    optimizer.state[new] = {key: moved(value) for key, value in optimizer.state.pop(old).items()}
