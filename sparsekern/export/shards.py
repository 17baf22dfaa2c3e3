"""A model in several safetensors files and an index of them, written with the memory of one tensor."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsekern.export.header import FORMAT, VERSION, describe_layers
from sparsekern.export.safetensors_stream import encode_header, read_header, write_tensors
from sparsekern.export.tensors import Named, named_tensors, own_state
from sparsekern.files import exclusive_folder, sync_folder, write_atomically
from sparsekern.formats.checks import check_integer, describe

INDEX = "model.safetensors.index.json"
# A second save into a folder has another stem, so that the first one's files stay until its index is there.
SHARD = re.compile(r"(model(?:\.\d+)?)-\d{5,}-of-\d{5,}\.safetensors")
UNFINISHED = re.compile(rf"\.(?:{SHARD.pattern}|{re.escape(INDEX)})\.\d+\.tmp")
# What a shard says of itself beside its tensors; the index has the rest.
SHARD_METADATA = {"format": "pt", FORMAT: json.dumps({"version": VERSION})}


def save_sharded(
    model: nn.Module, folder: str | os.PathLike[str], *, shard_bytes: int = 5 * 10**9
) -> list[Path]:
    """Write a model's state dict, packed as it is, to safetensors files of limited size and an index.

    The layout is that of Hugging Face: ``model-00001-of-00003.safetensors`` and so on, and
    ``model.safetensors.index.json``, whose ``weight_map`` has the file of every tensor. Under ``metadata``,
    the index has ``total_size`` and ``sparsekern``: the sparse layers as in `save_safetensors`, and bytes and
    SHA-256 of every file. Beside the model, the memory of one tensor is needed.

    Files are written under other names first and the index comes last: whatever interrupts a save, the folder
    has the earlier one, whole. So the disk must have room for both; the earlier files go when the index names
    the new ones, whose names then begin with ``model.1``, or with ``model`` again.

    Parameters
    ----------
    model : torch.nn.Module
        With its weights, on any device. Tied weights are stored once.
    folder : path
        Made if it is not there. Holds a save of this function, or none.
    shard_bytes : int
        The most bytes of tensors in a file; a tensor that is larger has one of its own.

    Returns
    -------
    list of Path
        The files with tensors, in order.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, the model has tensors on meta, state-dict hooks, or entries
        that are no plain tensors, or the folder has an index of another tool. Nothing is written then.
    BlockingIOError
        When another process saves there.
    OSError
        When a file cannot be written, with its name; the earlier save is still there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    folder = checked_folder(folder)
    shard_bytes = check_integer(shard_bytes, "shard_bytes")
    named = named_tensors(model)
    for key, tensor in named.items():
        if tensor.is_meta:
            raise ValueError(f"model must have its weights, got {key!r} on the meta device")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive_folder(folder):
            return _save(model, named, folder, shard_bytes)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, "another process saves into this folder", str(folder)) from None


def _save(model: nn.Module, named: dict[str, Named], folder: Path, shard_bytes: int) -> list[Path]:
    _check_earlier(folder)
    shards = _shares(named, shard_bytes)
    stem = _free_stem(folder)
    names = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    temporary = [folder / f".{name}.{os.getpid()}.tmp" for name in names]
    made: list[Path] = []
    try:
        records = {}
        for name, path, keys in zip(names, temporary, shards, strict=True):
            made.append(path)
            size, digest = _write_shard(path, {key: named[key] for key in keys})
            records[name] = {"bytes": size, "sha256": digest}
        for name, path in zip(names, temporary, strict=True):
            made.append(folder / name)
            os.replace(path, folder / name)
        sync_folder(folder)
        index = _index(model, named, dict(zip(names, shards, strict=True)), records)
        write_atomically(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    except BaseException as error:
        kept = _indexed(folder)  # an interrupt may come when the new index is there
        for path in made:
            if path.name in kept:
                continue
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(made[-1])) from error
        raise
    _remove_others(folder, set(names))
    return [folder / name for name in names]


def _shares(named: dict[str, Named], shard_bytes: int) -> list[list[str]]:
    """The keys of each file. Within one, tensors of larger elements come first: so all are aligned."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for key, tensor in named.items():
        if tensor.kept != key:
            continue
        if tensor.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(key)
        room -= tensor.nbytes
    return [sorted(keys, key=lambda key: -named[key].dtype.itemsize) for keys in shards]


def _write_shard(path: Path, named: dict[str, Named]) -> tuple[int, str]:
    header = encode_header({key: (entry.dtype, entry.shape) for key, entry in named.items()}, SHARD_METADATA)
    with open(path, "wb") as file:
        return write_tensors(file, header, _contents(named))


def _contents(named: dict[str, Named]) -> Iterator[Tensor]:
    for key, entry in named.items():
        yield own_state(entry.prefix, entry.module)[key]


def _index(
    model: nn.Module,
    named: dict[str, Named],
    shards: dict[str, list[str]],
    records: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    file_of = {key: name for name, keys in shards.items() for key in keys}
    header = {
        "version": VERSION,
        "layers": describe_layers(model),
        "aliases": {key: entry.kept for key, entry in named.items() if entry.kept != key},
        "shards": records,
    }
    return {
        "metadata": {"total_size": sum(named[key].nbytes for key in file_of), FORMAT: header},
        "weight_map": {key: file_of[key] for key in named if key in file_of},
    }


def checked_folder(folder: Any) -> Path:
    rule = "folder must be the path of a folder"
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"{rule}, got {describe(folder)}")
    path = Path(folder)
    if not os.fspath(folder) or (path.exists() and not path.is_dir()):
        raise ValueError(f"{rule}, got {os.fspath(folder)!r}")
    return path


def _check_earlier(folder: Path) -> None:
    """Raise for an index of another tool, which replacing it would lose."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        index = None
    if not (isinstance(index, dict) and FORMAT in (index.get("metadata") or {})):
        raise ValueError(
            f"folder must hold a save of save_sharded or none, got {folder} with a {INDEX} of another tool"
        )


def _indexed(folder: Path) -> set[str]:
    """The files that the folder's index names."""
    try:
        return set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError):
        return set()


def _free_stem(folder: Path) -> str:
    taken = {match[1] for path in folder.iterdir() if (match := SHARD.fullmatch(path.name))}
    stems = ["model", *(f"model.{i}" for i in range(1, len(taken) + 1))]
    return next(stem for stem in stems if stem not in taken)


def _remove_others(folder: Path, names: set[str]) -> None:
    """Removes the files of earlier saves, and what saves that were killed left; the new one is safe."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            is_other = path.name not in names and SHARD.fullmatch(path.name) and _is_ours(path)
            if is_other or UNFINISHED.fullmatch(path.name):
                path.unlink()


def _is_ours(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return FORMAT in read_header(path, file)[1]
    except ValueError:
        return False
