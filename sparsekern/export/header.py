"""What files of tensors say of the layers that the tensors belong to."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from sparsekern.export.dense import PACKED
from sparsekern.nn import SparseModule, TwoFourLayer, TwoFourLinearInt8

# The header's key, and the version of what is under it.
FORMAT, VERSION = "sparsekern", 1


def describe_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        name: {"class": type(layer).__name__, "shape": _shape(layer), "stored": _stored(layer)}
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, PACKED)
    }


def _shape(layer: SparseModule | TwoFourLinearInt8) -> list[int]:
    is_int8 = isinstance(layer, TwoFourLinearInt8)
    return [layer.out_features, layer.in_features] if is_int8 else list(layer.weight_shape)


def _stored(layer: SparseModule | TwoFourLinearInt8) -> str:
    """Which of the formats: its tensors are told apart by it."""
    if isinstance(layer, TwoFourLinearInt8):
        return "int8 2:4"
    return f"{'2:4' if isinstance(layer, TwoFourLayer) else 'pattern'} {layer.weight_name}"


def read_header(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(FORMAT)
    if text is None:
        raise ValueError(f"{path}: expected a file of save_safetensors, found one without its header")
    try:
        header = json.loads(text)
        version, _, aliases = header["version"], header["layers"].items(), header["aliases"].values()
        if not all(isinstance(name, str) for name in aliases):
            raise TypeError("aliases: expected names")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path}: expected the header of save_safetensors, found {text[:60]!r}") from None
    if version != VERSION:
        raise ValueError(f"{path}: expected version {VERSION}, found {version}")
    return header


def check_layers(path: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        expected, found = ours.get(name, "a dense layer or none"), theirs.get(name, "a dense layer or none")
        if expected != found:
            hint = "" if ours else "; the model has no sparse layers: call sparsify_ as before it was saved"
            raise ValueError(f"{path}: expected {expected} for layer {name!r}, found {found}{hint}")


def safetensors_package() -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "a .safetensors file needs the package safetensors: pip install safetensors"
        ) from error
    return safetensors
