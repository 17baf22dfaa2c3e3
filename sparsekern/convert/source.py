"""The file to convert: what it is, and its state dict."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsekern.convert.errors import ConvertError
from sparsekern.experiments.checkpoint import MAGIC, read_checkpoint
from sparsekern.experiments.errors import CheckpointError
from sparsekern.export.header import FORMAT, read_header, safetensors_package
from sparsekern.export.shard_index import open_shards
from sparsekern.export.shards import INDEX
from sparsekern.state_files import PLACES, at_place, outline, read_torch, reason

EXPECTED = (
    "a .safetensors file, a state dict of torch.save, a checkpoint with one, or the folder of a run of "
    "sparsekern train or of save_sharded"
)


@dataclass(frozen=True)
class Source:
    """The weights to convert.

    Attributes
    ----------
    path : Path
        Of the file, or of the folder with several.
    what : str
        What it is, for people.
    state : dict of str to Tensor
        On the CPU. Tied weights are one tensor.
    layers : dict
        What the header of `sparsekern.export.save_safetensors` says of sparse layers, by name: class, shape
        and storage.
    recipe : mapping, optional
        Of the run whose checkpoint this is.
    left_out : tuple of str
        Keys of what is no tensor, which no converted file has.
    shards : tuple of Path
        The files with tensors, where there are several.
    """

    path: Path
    what: str
    state: dict[str, Tensor]
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    left_out: tuple[str, ...] = ()
    shards: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """What was read."""
        return self.shards or (self.path,)

    @property
    def nbytes(self) -> int:
        """Of the files."""
        return sum(file.stat().st_size for file in self.files)


def read_source(path: Path) -> Source:
    """Read the file to convert.

    Raises
    ------
    ConvertError
        When it cannot be read or is none that has weights: names the file, what was expected and found.
    """
    try:
        if (path / INDEX).is_file():
            return _read_shards(path)
        if path.is_dir():
            path = _file_of_folder(path)
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ImportError as error:
        raise ConvertError(f"{path}: {error}") from None


def _file_of_folder(folder: Path) -> Path:
    checkpoint = folder / "checkpoint.pt"
    if not checkpoint.is_file():
        raise ConvertError(f"{folder}: expected {EXPECTED}, found a folder without checkpoint.pt")
    return checkpoint


def _read_shards(folder: Path) -> Source:
    with ExitStack() as opened:
        try:
            shards = open_shards(folder, opened)
            state = {key: shards.read(key) for key in shards.tensors}
            layers = _layers(shards.layers)
        except ValueError as error:
            raise ConvertError(str(error)) from None
        except (KeyError, TypeError) as error:
            raise ConvertError(f"{shards.path}: expected that of save_sharded, found {error!r}") from None
    state |= {key: state[kept] for key, kept in shards.aliases.items()}
    files = tuple({entry[0]: None for entry in shards.tensors.values()})
    return Source(folder, "a folder of save_sharded", state, layers, shards=files)


def _read_safetensors(path: Path) -> Source:
    package = safetensors_package()
    with open(path, "rb"):  # an unreadable file is an OSError, whatever the package makes of it
        pass
    try:
        with package.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            state = {key: file.get_tensor(key) for key in file.keys()}
    except package.SafetensorError as error:
        raise ConvertError(
            f"{path}: expected a safetensors file, found a damaged one or one of another kind "
            f"({reason(error)})"
        ) from None
    if not state:
        raise ConvertError(f"{path}: expected {EXPECTED}, found a file without tensors")
    if FORMAT not in (metadata or {}):
        return Source(path, "a safetensors file", state)
    try:
        header = read_header(path, metadata)
        state |= {key: state[kept] for key, kept in header["aliases"].items()}
        layers = _layers(header["layers"])
    except ValueError as error:
        raise ConvertError(str(error)) from None
    except (KeyError, TypeError) as error:
        raise ConvertError(f"{path}: expected the header of save_safetensors, found {error!r}") from None
    return Source(path, "a file of save_safetensors", state, layers)


def _layers(described: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {"stored": str(layer["stored"]), "shape": tuple(map(int, layer["shape"]))}
        for name, layer in described.items()
    }


def _read_torch(path: Path) -> Source:
    try:
        content = read_torch(path)
    except ValueError as error:
        hint = "; of a pickled model, save model.state_dict()" if "Weights only load" in str(error) else ""
        raise ConvertError(f"{path}: expected {EXPECTED}, found {error}{hint}") from None
    recipe = None
    if isinstance(content, Mapping) and content.get("magic") == MAGIC:
        try:
            recipe = read_checkpoint(path).get("recipe")  # checks the digest, too
        except CheckpointError as error:
            raise ConvertError(str(error)) from None
    for place in PLACES:
        found = at_place(content, place)
        if found is None or not _is_state(found):
            continue
        state = {key: value for key, value in found.items() if isinstance(value, Tensor)}
        left_out = tuple(key for key in found if key not in state)
        what = "a state dict" if not place else f"the state dict under {'.'.join(place)!r}"
        if recipe is not None:
            what = "the checkpoint of a run of sparsekern train"
        return Source(path, what, _tied(state), recipe=recipe, left_out=left_out)
    raise ConvertError(f"{path}: expected {EXPECTED}, found {outline(content)}")


def _is_state(content: Mapping[Any, Any]) -> bool:
    """Tensors by name, and nothing that has tensors of its own: that would be a file around a state dict."""
    own = {key: value for key, value in content.items() if not str(key).endswith("_extra_state")}
    return (
        all(isinstance(key, str) for key in content)
        and any(isinstance(value, Tensor) for value in own.values())
        and not any(isinstance(value, Mapping) for value in own.values())
    )


def _tied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With one tensor for all names of a weight: a state dict has views of one memory."""
    first: dict[tuple[Any, ...], Tensor] = {}
    for key, tensor in state.items():
        if tensor.layout == torch.strided and tensor.numel():
            same = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            state[key] = first.setdefault(same, tensor)
    return state
