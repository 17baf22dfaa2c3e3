"""A model in one safetensors file, packed as it is in memory."""

from __future__ import annotations

import copy
import json
import os

from torch import Tensor, nn

from sparsekern.export.header import (
    FORMAT,
    VERSION,
    check_layers,
    describe_layers,
    read_header,
    safetensors_package,
)
from sparsekern.export.paths import checked_path
from sparsekern.files import write_atomically
from sparsekern.formats.checks import describe
from sparsekern.formats.pattern import Pattern
from sparsekern.nn import SparseLayer


def save_safetensors(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's state dict, packed as it is, to a safetensors file that says how to read it.

    The header's ``sparsekern`` is JSON with, for each sparse layer, its class, the dense weight's shape and
    what its tensors are; [the formats](docs/formats.md) are few lines to decode in any language.

    Parameters
    ----------
    model : torch.nn.Module
    path : path
        Ends in ``.safetensors``. Written whole or not at all.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.
    ImportError
        Without the package safetensors.
    OSError
        When the file cannot be written; one that was there is still there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    path = checked_path(path, ".safetensors")
    package = safetensors_package()
    # Tied weights are stored once; safetensors refuses two names for one memory.
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        kept = first.setdefault(id(value), key)
        if kept == key:
            tensors[key] = value.detach().cpu().contiguous().clone()
        else:
            aliases[key] = kept
    header = {"version": VERSION, "layers": describe_layers(model), "aliases": aliases}
    # One key: the package writes several in any order, and equal models are to make equal files.
    content = package.torch.save(tensors, {FORMAT: json.dumps(header)})
    write_atomically(path, content)


def load_safetensors(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load what `save_safetensors` wrote into a model with the same layers.

    Parameters
    ----------
    model : torch.nn.Module
        With the same sparse layers, on any device but meta; their patterns may be others. Where one has
        another number of active positions, its Parameter is resized: load before the optimizer is made.
    path : path

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, the file is damaged or of another kind or version, or its
        layers are not the model's: names the first that differs. Nothing is changed then.
    ImportError
        Without the package safetensors.
    OSError
        When the file cannot be read.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    path = checked_path(path, ".safetensors")
    package = safetensors_package()
    with open(path, "rb"):  # an unreadable file is an OSError, whatever the package makes of it
        pass
    try:
        with package.safe_open(path, framework="pt") as file:
            header = read_header(path, file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except package.SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, found a damaged one ({error})") from None
    check_layers(path, describe_layers(model), header["layers"])
    state = {**tensors, **{key: tensors[kept] for key, kept in header["aliases"].items() if kept in tensors}}
    for key, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ValueError(
                f"model must have its memory, got {key!r} on the meta device: load_sharded gives it some"
            )
    try:  # on a copy, since PyTorch stops half way at what does not fit
        _load(copy.deepcopy(model), state)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the tensors of this model: {error}") from error
    _load(model, state)


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, layer in model.named_modules():
        key = f"{name}.pattern" if name else "pattern"
        if isinstance(layer, SparseLayer) and layer.storage == "compact" and key in state:
            # Other lengths are for the Parameters that are there, which others may hold as well.
            pattern = Pattern(state[key])
            if pattern.nnz != layer.pattern.nnz:
                layer.set_pattern(pattern, resize=True)
    model.load_state_dict(state)
