"""A model's weights as they were at some step, put back under masks that were found later."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import check_choice, describe
from sparsekern.formats.pattern import Pattern
from sparsekern.methods.arguments import check_model as check_module
from sparsekern.methods.arguments import unwrapped
from sparsekern.methods.driven_layer import check_unmoved
from sparsekern.nn import SparseLayer, sparsify_
from sparsekern.nn.checks import STORAGES, as_pattern, near_names
from sparsekern.nn.survey import check_model

__all__ = ["move_to_masks_", "rewind_", "snapshot"]


@torch.no_grad()
def snapshot(model: nn.Module) -> dict[str, Any]:
    """A copy of all weights, biases and buffers, for `rewind_`: the state dict of the dense model.

    Parameters
    ----------
    model : torch.nn.Module
        Dense or sparse, left unchanged; may be wrapped in DDP or compiled.

    Returns
    -------
    dict of str to Tensor
        On the CPU, under the keys of the dense model's state dict. Sparse layers have their dense ``weight``
        in it, 0 where pruned, and no pattern: which weights are there is for masks to say. What
        ``torch.save`` writes of it, ``torch.load(weights_only=True)`` reads.

    Raises
    ------
    TypeError
        When `model` is no module.
    """
    check_module(model)
    model = unwrapped(model)
    layers = _sparse_layers(model)
    state: dict[str, Any] = {}
    for key, value in model.state_dict().items():
        prefix, _, name = key.rpartition(".")
        layer = layers.get(prefix)
        if layer is None or name == "bias":
            state[key] = _copied(value)
        elif name == layer.weight_name:
            state[_key(prefix, "weight")] = _copied(layer.to_dense())
    return state


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def rewind_(
    model: nn.Module,
    state: Mapping[str, Any],
    masks: Mapping[str, Tensor | Pattern] | None = None,
    *,
    storage: str = "compact",
) -> None:
    """Puts weights, biases and buffers of another time back, in place, under masks: a lottery ticket.

    With the `snapshot` of step k and the masks of the trained network this is weight rewinding; k = 0 is the
    original ticket. Learning-rate rewinding needs no call of this: it keeps the trained weights, and only the
    schedule goes back.

    Call it before the optimizer is made: layers that become sparse, or change their number of weights, have
    new Parameters, or longer or shorter ones. Gradients are cleared.

    Parameters
    ----------
    model : torch.nn.Module
        With the layers that `state` was taken from; they may be dense or sparse by now.
    state : mapping of str to Tensor
        Of `snapshot`, or the state dict of the dense model, on any device.
    masks : mapping of str to bool tensor or Pattern, optional
        By layer name. Dense layers become sparse ones, sparse ones move to their mask; layers without a mask
        stay what they are. By default that goes for all.
    storage : str
        Of layers that become sparse: ``"compact"`` or ``"masked"``, see `SparseLinear`.

    Raises
    ------
    TypeError, ValueError
        For a state of another model, masks that do not fit, a layer that a dynamic method moves, and a model
        that is wrapped in DDP. Nothing has been changed then.

    References
    ----------
    Frankle, Carbin, *The lottery ticket hypothesis* (2019). Frankle et al., *Linear mode connectivity and
    the lottery ticket hypothesis* (2020), rewinding to step k. Renda, Frankle, Carbin, *Comparing rewinding
    and fine-tuning in neural network pruning* (2020).
    """
    check_model(model)
    check_choice(storage, STORAGES, "storage")
    _check_state(model, state)
    move_to_masks_(model, {} if masks is None else masks, storage)
    layers = _sparse_layers(model)
    own: dict[str, Any] = {}
    for key in model.state_dict():
        prefix, _, name = key.rpartition(".")
        layer = layers.get(prefix)
        if layer is None or name == "bias":
            own[key] = state[key]
        elif name == "pattern":
            own[key] = layer.pattern.data
        else:
            own[key] = _stored(layer, state[_key(prefix, "weight")])
    model.load_state_dict(own)
    for parameter in model.parameters():
        parameter.grad = None


def _stored(layer: SparseLayer, weight: Tensor) -> Tensor:
    weight = weight.detach().to(layer.pattern.device)
    return layer.pattern.pack(weight) if layer.storage == "compact" else torch.where(layer.mask, weight, 0)


def move_to_masks_(model: nn.Module, masks: Mapping[str, Tensor | Pattern], storage: str) -> None:
    """Make layers sparse, or move sparse ones, where there is a mask; nothing is changed by an error."""
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks must be a mapping from layer name to mask, got {describe(masks)}")
    layers = _sparse_layers(model)
    moved: dict[int, tuple[str, SparseLayer, Pattern]] = {}
    for name in masks.keys() & layers.keys():
        layer = layers[name]
        pattern = as_pattern(masks[name], layer.weight_shape, f"masks[{name!r}]")
        other, _, first = moved.setdefault(id(layer._topology), (name, layer, pattern))
        if not torch.equal(first.to_mask().cpu(), pattern.to_mask().cpu()):
            raise ValueError(f"masks must be the same for {other!r} and {name!r}, which share a weight")
    check_unmoved({name: layer for name, layer, _ in moved.values()})
    if dense := {name: mask for name, mask in masks.items() if name not in layers}:
        sparsify_(model, masks=dense, storage=storage)
    for _, layer, pattern in moved.values():
        layer.set_pattern(pattern, resize=True)


def _sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, SparseLayer)}


def _key(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _dense_shapes(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """The keys of `snapshot`, with the shapes of tensors."""
    layers = _sparse_layers(model)
    for key, value in model.state_dict().items():
        prefix, _, name = key.rpartition(".")
        layer = layers.get(prefix)
        if layer is None or name == "bias":
            yield key, tuple(value.shape) if isinstance(value, Tensor) else None
        elif name == layer.weight_name:
            yield _key(prefix, "weight"), layer.weight_shape


def _check_state(model: nn.Module, state: Any) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be the state dict of the dense model, got {describe(state)}")
    shapes = dict(_dense_shapes(model))
    for key in state:
        if key not in shapes:
            raise ValueError(
                f"state must have the keys of the dense model's state dict, got {key!r}, which it has not"
                + near_names(str(key), shapes)
            )
    for key, shape in shapes.items():
        if key not in state:
            raise ValueError(f"state must have the keys of the dense model's state dict, got none of {key!r}")
        value = state[key]
        if shape is not None and (not isinstance(value, Tensor) or tuple(value.shape) != shape):
            raise ValueError(f"state[{key!r}] must be a tensor of shape {shape}, got {describe(value)}")
