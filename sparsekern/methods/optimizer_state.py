"""What an optimizer keeps for a weight, and whether it can move with the weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import describe

__all__ = ["check_holds_any", "check_states", "states_of"]


def states_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """The optimizer's tensors with an element for each one of the parameter's: momentum, second moments."""
    state = optimizer.state.get(parameter, {})
    return [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape and v.dim() > 0]


def check_holds_any(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise for an optimizer of another model: the one of this would go on with the old Parameters.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    parameters : mapping of str to nn.Parameter
        The weights, by layer name; those that need no gradient do not count.

    Raises
    ------
    ValueError
        When it holds none of them.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: id(parameter) for name, parameter in parameters.items() if parameter.requires_grad}
    if trained and held.isdisjoint(trained.values()):
        raise ValueError(
            f"optimizer must hold weights of the model, such as that of layer {next(iter(trained))!r}, got "
            f"{describe(optimizer)} of others"
        )


def check_states(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, name: str) -> None:
    """Raise unless all of the optimizer's state for `parameter` is per element or the same for all of them.

    Raises
    ------
    TypeError
        For factored (Adafactor), common (LBFGS), quantized or listed state: no element belongs to one
        weight.
    """
    kind = type(optimizer).__name__
    if kind == "Adafactor" and parameter.dim() > 1:
        raise TypeError(
            f"optimizer must not be Adafactor for layer {name!r} with storage='masked' or dense, whose "
            "second moments it factors into rows and columns; storage='compact' has them per weight"
        )
    if kind == "LBFGS":
        # It has that under its first parameter alone, and not before the first step.
        raise TypeError(_cannot_move(kind, "prev_flat_grad", name, "all weights together"))
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            raise TypeError(_cannot_move(kind, key, name, "a list of tensors"))
        if isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values()):
            raise TypeError(_cannot_move(kind, key, name, "a dict of tensors"))
        if not isinstance(value, Tensor) or (value.numel() == 1 and parameter.numel() != 1):
            continue
        if value.dim() > 0 and value.shape != parameter.shape:
            raise TypeError(_cannot_move(kind, key, name, f"shape {tuple(value.shape)}"))
        if value.dim() > 0 and not value.is_floating_point():
            raise TypeError(_cannot_move(kind, key, name, f"dtype {value.dtype}"))


def _cannot_move(kind: str, key: str, name: str, found: str) -> str:
    return (
        f"optimizer must keep its state per weight, so that it can move with the weights of layer {name!r}; "
        f"got {kind} with {key!r} of {found}"
    )
