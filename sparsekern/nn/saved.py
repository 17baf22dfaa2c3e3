"""Loading the pattern that a state dict holds into a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import describe
from sparsekern.formats.pattern import Pattern
from sparsekern.nn.topology import Topology, on_device_of

if TYPE_CHECKING:
    from sparsekern.nn.base import SparseLayer


def load_pattern(layer: SparseLayer, state_dict: Mapping[str, Any], prefix: str, assign: bool) -> None:
    """Takes the pattern under the layer's prefix, so that nn.Module can load the weight that goes with it.

    Parameters
    ----------
    layer : SparseLayer
        Its Parameter object stays, unless `assign` is True.
    state_dict : mapping of str to Tensor
        Has the key ``prefix + "pattern"``.
    prefix : str
        As in ``nn.Module._load_from_state_dict``.
    assign : bool
        The state dict's tensors become new Parameters, whose length is free.

    Raises
    ------
    ValueError
        For a tensor that is no pattern, or does not fit the layer or its own weight; nothing is changed.
    """
    pattern = _read(layer, state_dict, prefix)
    if layer.storage == "compact" and pattern.nnz != layer.pattern.nnz and not assign:
        raise ValueError(
            f"{prefix}pattern must have {layer.pattern.nnz} active positions, one for each value, got"
            f" {pattern.nnz}; optimizer states have that length too: before any is made, load with"
            " assign=True, or resize the layer with set_pattern(pattern, resize=True)"
        )
    kept = pattern == layer.pattern
    saved = state_dict.get(prefix + layer.weight_name) if assign else None
    device = (layer.stored_weight if saved is None else saved).device
    pattern = on_device_of(layer.pattern if kept else pattern, device)
    if assign:
        # assign=True gives every layer its own Parameter, which unties it from other layers.
        layer._topology = Topology(pattern)
    layer._topology.pattern = pattern
    if layer.storage == "masked" or kept:
        return
    if assign:
        # Only a size for nn.Module to compare: it puts the state dict's tensor in this place next.
        placeholder = torch.empty(pattern.nnz, dtype=layer.values.dtype, device="meta")
        layer.values = nn.Parameter(placeholder, requires_grad=layer.values.requires_grad)
    else:
        # Gradients of the old positions say nothing about the new ones.
        layer.values.grad = None


def _read(layer: SparseLayer, state_dict: Mapping[str, Any], prefix: str) -> Pattern:
    key, data = prefix + "pattern", state_dict[prefix + "pattern"]
    if not isinstance(data, Tensor) or data.is_meta:
        raise ValueError(f"{key} must be the int32 data of a pattern, with contents, got {describe(data)}")
    try:
        pattern = Pattern(data)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{key} must be a valid pattern: {error}") from error
    if pattern.shape != layer.pattern.shape:
        raise ValueError(f"{key} must have shape {layer.pattern.shape}, got {pattern.shape}")
    _check_weight(layer, pattern, state_dict, prefix)
    return pattern


def _check_weight(layer: SparseLayer, pattern: Pattern, state_dict: Mapping[str, Any], prefix: str) -> None:
    sizes = {layer.weight_name: (pattern.nnz,) if layer.storage == "compact" else pattern.shape}
    if layer.bias is not None:
        sizes["bias"] = (pattern.shape[0],)
    for name, size in sizes.items():
        value = state_dict.get(prefix + name)
        if value is not None and (not isinstance(value, Tensor) or tuple(value.shape) != size):
            raise ValueError(f"{prefix}{name} must have shape {size}, got {describe(value)}")
    other = "masked" if layer.storage == "compact" else "compact"
    if prefix + ("weight" if other == "masked" else "values") in state_dict:
        raise ValueError(
            f"{prefix}{layer.weight_name} must be there, got a layer saved with storage={other!r}: load it"
            " into one with that storage"
        )
    if pattern != layer.pattern and prefix + layer.weight_name not in state_dict:
        raise ValueError(
            f"{prefix}{layer.weight_name} must be there, since the state dict's pattern differs from the"
            f" layer's (storage={layer.storage!r}): a pattern is loaded together with its weight"
        )
