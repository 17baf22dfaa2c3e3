"""The folder of a checkpoint: data in a folder of their own, and a small file that says which are valid.

What a save writes lies in a new folder ``data-N`` until ``checkpoint.json``, replaced in one step, names it:
at every moment there is the checkpoint from before or the new one, also when a process is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsekern.distributed.agreement import CheckpointError
from sparsekern.files import remove_unfinished, write_atomically

__all__ = ["begin", "commit", "digests", "discard", "listing", "read_manifest", "verify"]

MANIFEST = "checkpoint.json"
FORMAT = 1
DATA = re.compile(r"data-([0-9]+)")
CHUNK = 1 << 20


def begin(path: Path) -> str:
    """Make room for a checkpoint: the name of a new, empty folder in `path`.

    What killed processes have left there is removed.

    Raises
    ------
    ValueError
        When `path` is a file, or has anything else in it than checkpoints of this kind.
    CheckpointError
        When its manifest cannot be read.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"path must be a folder or new, got the file {str(path)!r}")
    path.mkdir(parents=True, exist_ok=True)
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(f".{MANIFEST}.")]
    if foreign := sorted(name for name in names if name != MANIFEST and not DATA.fullmatch(name)):
        raise ValueError(
            f"path must be a new folder or one of save_checkpoint, got {str(path)!r} with {foreign[0]!r}"
        )
    current = read_manifest(path)["data"] if MANIFEST in names else None
    numbers = [int(match[1]) for match in map(DATA.fullmatch, names) if match]
    _remove_others(path, current)
    name = f"data-{max(numbers, default=0) + 1}"
    (path / name).mkdir()
    return name


def listing(folder: Path) -> list[str]:
    """Names of the files in a folder of data."""
    return sorted(entry.name for entry in folder.iterdir())


def digests(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files, by name."""
    found = {}
    for name in names:
        digest = hashlib.sha256()
        with open(folder / name, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            found[name] = {"bytes": file.tell(), "sha256": digest.hexdigest()}
    return found


def commit(path: Path, name: str, files: Mapping[str, Mapping[str, Any]], processes: int) -> None:
    """Make the data in ``path / name`` the checkpoint, and remove what was before."""
    content = {"format": FORMAT, "data": name, "processes": processes, "files": dict(sorted(files.items()))}
    text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
    write_atomically(path / MANIFEST, text.encode())
    _remove_others(path, name)


def discard(path: Path, name: str) -> None:
    """Remove the data of a save that failed, as far as that is possible."""
    shutil.rmtree(path / name, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """What ``checkpoint.json`` says: the valid folder, its files, and how many processes wrote them.

    Raises
    ------
    CheckpointError
        When there is none, or not one that :func:`commit` has written.
    """
    file = path / MANIFEST
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"path must be a folder with a checkpoint, got {str(path)!r} without {MANIFEST}"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None
    stated = content.pop("sha256", None) if isinstance(content, dict) else None
    if stated is None or stated != _digest(content):
        raise CheckpointError(f"{file} is damaged: its content is not what was written")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{file} must have format {FORMAT}, got {content['format']!r}")
    return content


def verify(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise CheckpointError for the first file that is missing or not as it was written."""
    for name, stated in files.items():
        file = folder / name
        try:
            size = file.stat().st_size
            if size != stated["bytes"]:
                raise CheckpointError(f"{file} must have {stated['bytes']:,} bytes, got {size:,}")
            same = digests(folder, [name])[name] == stated
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        if not same:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one that was written")


def _remove_others(path: Path, name: str | None) -> None:
    # What cannot be removed takes room and harms nothing.
    with contextlib.suppress(OSError):
        for entry in path.iterdir():
            if DATA.fullmatch(entry.name) and entry.name != name:
                shutil.rmtree(entry, ignore_errors=True)
        remove_unfinished(path / MANIFEST)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
