"""Loading the mask that a state dict holds into a 2:4 layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsekern.formats.checks import describe
from sparsekern.formats.two_four import check_metadata, metadata_width
from sparsekern.nn.two_four_mask import HeldMask, transposed_metadata

if TYPE_CHECKING:
    from sparsekern.nn.two_four_layer import TwoFourLayer


def load_mask(layer: TwoFourLayer, state_dict: Mapping[str, Any], prefix: str, assign: bool) -> list[str]:
    """Takes the mask under the layer's prefix, so that nn.Module can load the weight that goes with it.

    Parameters
    ----------
    layer : TwoFourLayer
        One whose mask follows from the weight takes none; what a state dict has is passed over.
    state_dict : mapping of str to Tensor
        May have the keys ``prefix + "metadata"`` and ``prefix + "age"``.
    prefix : str
        As in ``nn.Module._load_from_state_dict``.
    assign : bool
        The state dict's tensors become new Parameters, which unties the layer from others.

    Returns
    -------
    list of str
        The keys that the layer needs and the state dict has not.

    Raises
    ------
    ValueError
        For what does not fit the layer, or a mask without its weight; nothing is changed.
    """
    _check_weight(layer, state_dict, prefix)
    wanted = ["metadata"] if layer.method == "fixed" else ["metadata", "age"] * (layer.refresh_every > 1)
    missing = [prefix + name for name in wanted if prefix + name not in state_dict]
    has_weight = prefix + layer.weight_name in state_dict
    if missing and layer.method == "fixed" and has_weight:
        # load_state_dict(strict=False) does not say so here, and this one is wrong in either case.
        raise ValueError(
            f"{prefix}metadata must come with the values, which could land at other positions without"
        )
    loaded = None
    if wanted and not missing:
        if not has_weight:
            raise ValueError(f"{prefix}{layer.weight_name} must be there: a mask is loaded with its weight")
        loaded = _read(layer, state_dict, prefix)
    if assign and has_weight:
        layer._held = HeldMask(layer._held.metadata)
    if loaded is not None:
        if layer.method == "fixed" and not torch.equal(loaded[0], layer._held.metadata):
            layer.values.grad = None  # gradients of the old positions say nothing about the new ones
        layer._held.load(*loaded)
        weight = state_dict[prefix + layer.weight_name] if assign else layer.stored_weight
        layer._held.move(weight.device)
    elif has_weight:
        # Of an age that the next forward pass chooses a mask.
        layer._held.load(layer._held.metadata, None, layer.refresh_every)
    return missing


def _check_weight(layer: TwoFourLayer, state_dict: Mapping[str, Any], prefix: str) -> None:
    sizes = {layer.weight_name: tuple(layer.stored_weight.shape), "bias": (layer.weight_shape[0],)}
    for name, size in sizes.items():
        value = state_dict.get(prefix + name)
        if value is not None and (not isinstance(value, Tensor) or tuple(value.shape) != size):
            raise ValueError(f"{prefix}{name} must have shape {size}, got {describe(value)}")
    if layer.method == "fixed" and prefix + "weight" in state_dict:
        raise ValueError(
            f"{prefix}values must be there, got the dense weight of a layer that is not method='fixed': load"
            " it into one like that, and call fix_mask_()"
        )
    if layer.method != "fixed" and prefix + "values" in state_dict:
        raise ValueError(
            f"{prefix}weight must be there, got a layer saved with method='fixed': load it into one like that"
        )


def _read(
    layer: TwoFourLayer, state_dict: Mapping[str, Any], prefix: str
) -> tuple[Tensor, Tensor | None, int]:
    rows, columns = layer.matrix_shape
    key, metadata = prefix + "metadata", state_dict[prefix + "metadata"]
    shape = (rows, metadata_width(columns))
    good = isinstance(metadata, Tensor) and metadata.dtype == torch.uint8 and not metadata.is_meta
    if not good or tuple(metadata.shape) != shape:
        raise ValueError(
            f"{key} must be a uint8 tensor of shape {shape}, with contents, got {describe(metadata)}"
        )
    check_metadata(metadata, columns, key)
    metadata_t = transposed_metadata(metadata, columns, key) if layer.transposable else None
    if layer.method == "fixed":
        return metadata.clone(), None, 0
    age = state_dict[prefix + "age"]
    good = isinstance(age, Tensor) and age.dtype == torch.int64 and not age.is_meta
    if not good or age.numel() != 1 or int(age) < 0:
        came = int(age) if good and age.numel() == 1 else describe(age)
        raise ValueError(f"{prefix}age must be an int64 tensor with one number of at least 0, got {came}")
    return metadata.clone(), metadata_t, int(age)
