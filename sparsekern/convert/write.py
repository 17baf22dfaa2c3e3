"""A state dict into a file, whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsekern.convert.errors import ConvertError
from sparsekern.convert.layers import nbytes
from sparsekern.export.header import FORMAT, VERSION, safetensors_package
from sparsekern.files import write_atomically

TORCH_ENDINGS = (".pt", ".pth", ".bin")
# form -> how `save_safetensors` calls the storage, and its layers of two and four dimensions.
STORED = {
    "packed": ("pattern values", {2: "SparseLinear", 4: "SparseConv2d"}),
    "masked": ("pattern weight", {2: "SparseLinear", 4: "SparseConv2d"}),
    "2:4": ("2:4 values", {2: "TwoFourLinear", 4: "TwoFourConv2d"}),
    "int8 2:4": ("int8 2:4", {2: "TwoFourLinearInt8"}),
}


def header_of(form: str, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """What a file of `sparsekern.export.save_safetensors` says of a layer; None of a dense one."""
    if form not in STORED:
        return None
    stored, classes = STORED[form]
    return {"class": classes[len(shape)], "shape": list(shape), "stored": stored}


def write_state(path: Path, state: Mapping[str, Tensor], layers: Mapping[str, dict[str, Any]]) -> None:
    """Write a state dict to a file of safetensors or torch, by the path's ending.

    Parameters
    ----------
    path : Path
    state : mapping of str to Tensor
        Tensors that are in it twice are stored once, but for dense safetensors: others read those.
    layers : mapping
        `header_of` the sparse layers, by name.

    Raises
    ------
    ConvertError
        When the file cannot be written; one that was there is still there.
    """
    try:
        content = _safetensors(state, layers) if path.suffix == ".safetensors" else _torch(state)
        write_atomically(path, content)
    except ImportError as error:
        raise ConvertError(f"{path}: {error}") from None
    except OSError as error:
        raise ConvertError(f"{path}: cannot be written: {error.strerror or error}") from None


def _torch(state: Mapping[str, Tensor]) -> bytes:
    own: dict[int, Tensor] = {}
    buffer = io.BytesIO()
    torch.save({key: own.setdefault(id(tensor), _alone(tensor)) for key, tensor in state.items()}, buffer)
    return buffer.getvalue()


def _alone(tensor: Tensor) -> Tensor:
    """With a memory of its size: torch.save writes all of the memory that a tensor is a part of."""
    if tensor.layout != torch.strided:
        return tensor
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == nbytes(tensor) else tensor.clone()


def _safetensors(state: Mapping[str, Tensor], layers: Mapping[str, dict[str, Any]]) -> bytes:
    package = safetensors_package()
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for key, tensor in state.items():
        kept = first.setdefault(id(tensor), key)
        if kept == key or not layers:
            tensors[key] = tensor.detach().contiguous().clone()
        else:
            aliases[key] = kept
    if not layers:
        return package.torch.save(tensors, {"format": "pt"})
    header = {"version": VERSION, "layers": layers, "aliases": aliases}
    return package.torch.save(tensors, {FORMAT: json.dumps(header)})
