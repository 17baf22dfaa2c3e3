"""Reading what `save_sharded` wrote: the index, and files that are what the index says."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from sparsekern.export.header import FORMAT, VERSION
from sparsekern.export.safetensors_stream import Stored, digest_of, read_header, read_tensor
from sparsekern.export.shards import INDEX


@dataclass(frozen=True)
class Shards:
    """The open files of a save, which stay those of one save whatever is written to the folder meanwhile.

    Attributes
    ----------
    path : Path
        Of the index, for messages.
    layers : dict
        As in the header of `save_safetensors`.
    aliases : dict from str to str
        For the keys of tied tensors, the key that is stored.
    tensors : dict from str to tuple
        For every stored key its file and where in it.
    """

    path: Path
    layers: dict[str, Any]
    aliases: dict[str, str]
    tensors: dict[str, tuple[Path, BinaryIO, Stored]]

    def stored(self, key: str) -> Stored | None:
        """What is stored under a key or for it; None where there is no such key."""
        place = self.tensors.get(self.kept(key))
        return None if place is None else place[2]

    def kept(self, key: str) -> str:
        return self.aliases.get(key, key)

    def read(self, key: str) -> Tensor:
        """The tensor, on the CPU."""
        return read_tensor(*self.tensors[self.kept(key)])


def open_shards(folder: Path, files: ExitStack) -> Shards:
    """The save in a folder, with all files open and checked in full.

    Parameters
    ----------
    folder : Path
    files : ExitStack
        Closes them.

    Raises
    ------
    ValueError
        For an index of another tool or version, and a file that is missing or not the one that was written:
        names it.
    OSError
        When the index is missing, or something cannot be read.
    """
    path = folder / INDEX
    header, file_of = _read_index(path)
    tensors: dict[str, tuple[Path, BinaryIO, Stored]] = {}
    for name, record in header["shards"].items():
        shard = folder / name
        try:
            file = files.enter_context(open(shard, "rb"))
        except FileNotFoundError:
            raise ValueError(f"{shard}: expected the file that {INDEX} names, found none") from None
        stored = _check_shard(shard, file, record)
        wanted = {key for key, file_name in file_of.items() if file_name == name}
        if wanted != stored.keys():
            odd = sorted(wanted ^ stored.keys())[0]
            raise ValueError(f"{shard}: expected the tensors that {INDEX} names, found another {odd!r}")
        tensors.update({key: (shard, file, entry) for key, entry in stored.items()})
    return Shards(path, header["layers"], header["aliases"], tensors)


def _check_shard(path: Path, file: BinaryIO, record: dict[str, Any]) -> dict[str, Stored]:
    size = file.seek(0, 2)
    if size != record["bytes"]:
        raise ValueError(f"{path}: expected {record['bytes']} bytes, found {size}")
    if (digest := digest_of(file)) != record["sha256"]:
        raise ValueError(f"{path}: expected SHA-256 {record['sha256']}, found {digest}: it is damaged")
    return read_header(path, file)[0]


def _read_index(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Our part of the index, and the file of every tensor."""
    try:
        index = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found what is none ({error})") from None
    metadata = index.get("metadata") if isinstance(index, dict) else None
    header = metadata.get(FORMAT) if isinstance(metadata, dict) else None
    if header is None:
        raise ValueError(f"{path}: expected an index of save_sharded, found one without its header")
    version = header.get("version") if isinstance(header, dict) else None
    if version != VERSION:
        raise ValueError(f"{path}: expected version {VERSION}, found {version}")
    file_of = index.get("weight_map")
    parts = (file_of, *(header.get(part) for part in ("layers", "aliases", "shards")))
    good = all(isinstance(part, dict) for part in parts)
    good = good and all(_is_record(name, record) for name, record in header["shards"].items())
    good = good and all(isinstance(name, str) and name in header["shards"] for name in file_of.values())
    good = good and all(isinstance(key, str) and key in file_of for key in header["aliases"].values())
    if not good:
        raise ValueError(f"{path}: expected the index of save_sharded, found one whose parts do not fit")
    return header, file_of


def _is_record(name: str, record: Any) -> bool:
    """Bytes and digest of a file in the folder itself."""
    is_record = isinstance(record, dict) and isinstance(record.get("sha256"), str)
    return is_record and type(record.get("bytes")) is int and Path(name).name == name
