"""Checkpoints: written whole or not at all, checked when read, never unpickled into code."""

import errno
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from sparsekern.experiments.digest import digest
from sparsekern.experiments.errors import CheckpointError
from sparsekern.files import write_atomically
from sparsekern.state_files import reason

MAGIC = "sparsekern checkpoint"
VERSION = 3


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (nested dictionaries and lists of tensors, numbers, text) in the format of
    ``torch.save``.

    The format's marker, its version and a digest of the whole content go with it. A crash or a full disk
    leaves the checkpoint that was there.

    Raises
    ------
    CheckpointError
        If the file cannot be written.
    """
    content = {"magic": MAGIC, "version": VERSION, "digest": digest(state), "state": state}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        kept = "; the checkpoint before it is intact" if path.exists() else ""
        raise CheckpointError(f"{path}: the checkpoint cannot be written: {why}{kept}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, with all tensors on the CPU.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is no checkpoint of this package, has another version, or is damaged.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error.strerror}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles it is about to refuse
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive fails in more ways than torch documents
        raise CheckpointError(
            f"{path}: expected a sparsekern checkpoint, found another or a damaged file ({reason(error)})"
        ) from None
    if not isinstance(content, dict) or content.get("magic") != MAGIC:
        raise CheckpointError(
            f"{path}: expected a sparsekern checkpoint, found a PyTorch file of something else"
        )
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: expected checkpoint version {VERSION}, found {content.get('version')}"
        )
    state = content.get("state")
    if not isinstance(state, dict) or content.get("digest") != digest(state):
        raise CheckpointError(f"{path}: the checkpoint is damaged: its content does not match its digest")
    return state
