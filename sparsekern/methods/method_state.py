"""A method's state: what another process needs to go on, checked before anything is changed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparsekern.formats.checks import describe, is_integer

if TYPE_CHECKING:
    from sparsekern.methods.attached import AttachedMethod

__all__ = ["read_state", "state_of"]

VERSION = 1
NEVER = -1


def state_of(method: AttachedMethod) -> dict[str, Any]:
    """Integers, text and tensors, nested: what ``torch.load(weights_only=True)`` reads."""
    return {
        "method": type(method).__name__,
        "version": VERSION,
        "options": {**asdict(method.options), **method.own_options},
        "steps": method.steps,
        "updates": method.updates,
        "next_update": NEVER if method.next_update is None else method.next_update,
        "layers": {layer.name: method.layer_state(layer) for layer in method.layers},
    }


def read_state(method: AttachedMethod, state: Any) -> dict[str, Any]:
    """The state, if it is one of the same method on the same model.

    Raises
    ------
    ValueError
        Names what is different.
    """
    expected = state_of(method)
    if not isinstance(state, dict) or not {"method", "version", "layers"} <= state.keys():
        raise ValueError(f"state must be that of a {expected['method']}, got {describe(state)}")
    for key in ("method", "version"):
        if state[key] != expected[key]:
            raise ValueError(f"state must have {key} {expected[key]!r}, got {state[key]!r}")
    if state.keys() != expected.keys():
        raise ValueError(f"state must have the keys {', '.join(expected)}, got {', '.join(map(str, state))}")
    if not isinstance(state["layers"], dict):
        raise ValueError(f"state['layers'] must be a dict, got {describe(state['layers'])}")
    _check_options(state["options"], expected["options"])
    for key in ("steps", "updates", "next_update"):
        least = NEVER if key == "next_update" else 0
        if not is_integer(state[key]) or state[key] < least:
            raise ValueError(
                f"state[{key!r}] must be an integer of at least {least}, got {describe(state[key])}"
            )
    if state["layers"].keys() != expected["layers"].keys():
        theirs, mine = (", ".join(s["layers"]) or "none" for s in (state, expected))
        raise ValueError(f"state must be of a model with the sparse layers {mine}, got {theirs}")
    for name, layer in expected["layers"].items():
        _check_layer(name, state["layers"][name], layer)
    method.check_layer_states(state["layers"])
    return state


def _check_options(found: Any, expected: dict[str, Any]) -> None:
    if not isinstance(found, dict) or found.keys() != expected.keys():
        raise ValueError(f"state['options'] must have the keys {', '.join(expected)}, got {describe(found)}")
    differing = [f"{key}={found[key]!r}" for key in expected if found[key] != expected[key]]
    if differing:
        wanted = ", ".join(f"{key}={expected[key]!r}" for key in expected if found[key] != expected[key])
        raise ValueError(f"state must be of a method with {wanted}, got {', '.join(differing)}")


def _check_layer(name: str, found: Any, expected: dict[str, Any]) -> None:
    if not isinstance(found, dict) or found.keys() != expected.keys():
        raise ValueError(f"state of layer {name!r} must have {', '.join(expected)}, got {describe(found)}")
    for key in ("shape", "nnz"):
        if key in expected and found[key] != expected[key]:
            raise ValueError(f"state of layer {name!r} must have {key} {expected[key]}, got {found[key]}")
    for key, value in expected.items():
        mine, other = _kind(value), _kind(found[key])
        if mine != other:
            raise ValueError(f"state of layer {name!r} must have {key} of {mine}, got {other}")


def _kind(value: Any) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
