"""`save_checkpoint` and `load_checkpoint`: a training run in a folder, for any number of processes."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsekern.distributed import folder as folders
from sparsekern.distributed.agreement import CheckpointError, Processes
from sparsekern.distributed.generators import check_generators, generator_states, restore_generators
from sparsekern.distributed.tensors import allocate, read_tensors, saved_sizes, write_tensors
from sparsekern.distributed.training import Training
from sparsekern.distributed.tree import is_sharded, join, split, tensors_of
from sparsekern.files import write_atomically
from sparsekern.formats.checks import describe
from sparsekern.methods.attached import AttachedMethod

__all__ = ["load_checkpoint", "save_checkpoint"]

DOCUMENT = "state.pt"
# Files of one process, by its rank.
OWN = re.compile(r"__([0-9]+)_.*|rank-([0-9]+)\.pt")


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: AttachedMethod | None = None,
    extra: Any = None,
    *,
    generators: Sequence[torch.Generator] = (),
    process_group: Any = "world",
) -> None:
    """Write all that a run needs to go on; called by all processes after the same step.

    The folder has the checkpoint from before until the new one is complete, and is never without one: a
    process that is killed, a disk that is full leave it as it was. An error in one process is one in all.
    A model that FSDP2 has sharded is written by parts, by all processes at the same time.

    Parameters
    ----------
    path : str or os.PathLike
        A folder that all processes see, made if it is not there, and for nothing else.
    model : nn.Module
        Alone, in DDP, compiled, or sharded by FSDP2 (``fully_shard``).
    optimizer : torch.optim.Optimizer
        Of Parameters of the model only.
    method : AttachedMethod, optional
        The one that is attached to the optimizer: `RigL`, `SET`, `GradualPruning`, ...
    extra : optional
        Whatever else the run needs (the step, a learning rate schedule's state dict): plain values and
        tensors in dicts, lists and tuples. The first process's is kept.
    generators : sequence of torch.Generator
        Those that this process draws from. PyTorch's own generators are written in any case.
    process_group : ``"world"`` or None
        Who trains the model, as for a method; None: this process alone.

    Raises
    ------
    TypeError, ValueError
        For arguments that are none of the above; nothing is written.
    CheckpointError
        In all processes, when one could not write its part: names that process and what went wrong.
    """
    processes = Processes(process_group)
    saving = _Saving(processes)
    paths = processes.together(lambda: saving.prepare(path, model, optimizer, method, extra, generators))
    if len(set(paths)) > 1:
        raise ValueError(f"path must be the same in all processes, got {paths[0]!r} and {paths[-1]!r}")
    saving.name = processes.first(lambda: folders.begin(saving.path))
    try:
        processes.together(saving.check_visible)
        write_tensors(saving.folder, saving.tensors, processes)
        saving.checksums = processes.together(saving.buffer_checksums)[0]
        processes.together(saving.write_own)
        # Not before all have written: another process's file may have another name until it is complete.
        written = processes.together(saving.digests)
        processes.first(lambda: saving.commit(written))
    except (CheckpointError, ValueError) as error:
        if processes.rank == 0:
            folders.discard(saving.path, saving.name)
        if isinstance(error, ValueError):
            raise
        raise CheckpointError(
            f"no checkpoint was written to {saving.path}, where all is as it was: {error}"
        ) from error


def load_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: AttachedMethod | None = None,
    *,
    generators: Sequence[torch.Generator] = (),
    process_group: Any = "world",
) -> Any:
    """Go on where :func:`save_checkpoint` was called, with any number of processes; called by all of them.

    Model, optimizer and method are made and wrapped as for a new run. Everything is read and compared before
    any of them is changed: files with their SHA-256, the rest with what is there. Up to the end, weights and
    optimizer state are there twice. With as many processes as have saved, PyTorch's generators and
    `generators` go on too, and buffers that are not the same everywhere are each process's own; with
    another number generators stay as they are, and such buffers are those of the first process.

    Parameters
    ----------
    path, model, optimizer, method, generators, process_group
        As for :func:`save_checkpoint`, with the same layers, sparsity, parameter groups and options.

    Returns
    -------
    extra
        What was given to `save_checkpoint`, its tensors on the CPU.

    Raises
    ------
    TypeError, ValueError
        For another model, optimizer or method than were saved: names what differs. Nothing is changed.
    CheckpointError
        In all processes, for a file that is damaged or missing: names it. Nothing is changed.

    Notes
    -----
    PyTorch's index of the parts (``.metadata``) is a pickle: load checkpoints that you trust only.
    """
    processes = Processes(process_group)
    loading = _Loading(processes)
    read = processes.together(lambda: loading.open(path, model, optimizer, method, generators))
    if len(set(read)) > 1:
        raise ValueError(f"path must be the same checkpoint in all processes, got others than {loading.path}")
    processes.together(loading.verify)
    processes.together(loading.check)
    read_tensors(loading.folder, loading.tensors, processes)
    processes.together(loading.check_loaded)
    processes.together(loading.apply)
    return loading.state["extra"]


class _Saving:
    """One process's part of a checkpoint that is being written."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.name = ""
        self.checksums: dict[str, str] = {}

    @property
    def folder(self) -> Path:
        return self.path / self.name

    def prepare(self, path: Any, model: Any, optimizer: Any, method: Any, extra: Any, generators: Any) -> str:
        """Check everything, and cut the state into a document and tensors; nothing is written."""
        self.path = _checked_path(path)
        self._generators = check_generators(generators)
        training = Training(model, optimizer, method)
        state = training.state()
        if any(is_sharded(leaf) for leaf in tree_leaves(extra)):
            raise TypeError("extra must hold whole tensors, got one that is spread over processes")
        if self._processes.rank == 0:
            state["extra"] = extra
        self._buffers = {
            name: buffer
            for name, buffer in training.model.named_buffers()
            if name in state["model"] and not is_sharded(buffer)
        }
        self.tensors: dict[str, Tensor] = {}
        document = {}
        for part, content in state.items():
            document[part], tensors = split(content, part)
            self.tensors |= tensors
            if part != "layers":
                _check_plain(document[part], part)
        self._document = _bytes_of({**document, "processes": self._processes.size})
        return str(self.path)

    def check_visible(self) -> None:
        if not self.folder.is_dir():
            raise ValueError(
                f"path must be a folder that all processes see, got {str(self.path)!r}, where process "
                f"{self._processes.rank} does not find what the first one has made"
            )

    def buffer_checksums(self) -> dict[str, str]:
        return {name: _checksum(buffer) for name, buffer in self._buffers.items()}

    def write_own(self) -> None:
        """Write what is this process's alone."""
        rank = self._processes.rank
        own = {n: b for n, b in self._buffers.items() if _checksum(b) != self.checksums.get(n)}
        content = {"generators": generator_states(self._generators), "buffers": own}
        write_atomically(self.folder / f"rank-{rank}.pt", _bytes_of(content))
        if rank == 0:
            write_atomically(self.folder / DOCUMENT, self._document)

    def digests(self) -> dict[str, dict[str, Any]]:
        """The digests of all files that this process has written."""
        names = [n for n in folders.listing(self.folder) if _writer(n) == self._processes.rank]
        return folders.digests(self.folder, names)

    def commit(self, written: list[dict[str, dict[str, Any]]]) -> None:
        """Make what all have written the checkpoint."""
        files = {name: digest for each in written for name, digest in each.items()}
        there = set(folders.listing(self.folder))
        if missing := sorted(files.keys() ^ there):
            raise CheckpointError(
                f"{self.folder / missing[0]} is not what the processes have written there: the folder must "
                "be one that all of them see, and of one run at a time"
            )
        folders.commit(self.path, self.name, files, self._processes.size)


class _Loading:
    """One process's part of a checkpoint that is being read."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def open(self, path: Any, model: Any, optimizer: Any, method: Any, generators: Any) -> str:
        self.path = _checked_path(path)
        self._generators = check_generators(generators)
        self._training = Training(model, optimizer, method)
        self._manifest = folders.read_manifest(self.path)
        self.folder = self.path / self._manifest["data"]
        return str(sorted(self._manifest["files"].items()))

    def verify(self) -> None:
        """Compare this process's share of the files with their digests."""
        names = sorted(self._manifest["files"])[self._processes.rank :: self._processes.size]
        folders.verify(self.folder, {name: self._manifest["files"][name] for name in names})

    def check(self) -> None:
        """Compare what was saved with what is to go on, and make room for it."""
        document = torch.load(self.folder / DOCUMENT, weights_only=True, map_location="cpu")
        self._document = document
        sizes = saved_sizes(self.folder)
        self._training.check(document, sizes)
        self._own = None
        if self._manifest["processes"] == self._processes.size:
            name = f"rank-{self._processes.rank}.pt"
            self._own = torch.load(self.folder / name, weights_only=True, map_location="cpu")
            if len(saved := self._own["generators"]["given"]) != len(self._generators):
                raise ValueError(
                    f"generators must be {len(saved)}, as in the checkpoint, got {len(self._generators)}"
                )
        self.tensors = allocate(tensors_of(document), sizes, self._training.likes(document))

    def check_loaded(self) -> None:
        self.state = join(self._document, self.tensors)
        self._training.check_patterns(self.state["model"])

    def apply(self) -> None:
        if self._own is not None:
            self.state["model"] |= self._own["buffers"]
        self._training.load(self.state)
        if self._own is not None:
            restore_generators(self._own["generators"], self._generators)


def _checked_path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise TypeError(f"path must be a str or os.PathLike, got {describe(path)}")
    return Path(path).absolute()


def _writer(name: str) -> int:
    """The process that has written a file."""
    match = OWN.fullmatch(name)
    return int(match[1] or match[2]) if match else 0


def _bytes_of(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _check_plain(document: Any, part: str) -> None:
    """Raise TypeError for what could not be read back."""
    try:
        torch.load(io.BytesIO(_bytes_of(document)), weights_only=True, map_location="cpu")
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TypeError(
            f"{part} must have plain values and tensors only, which torch.load(weights_only=True) reads: "
            f"{reason}"
        ) from error


def _checksum(tensor: Tensor) -> str:
    whole = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(whole.view(torch.uint8).numpy()).hexdigest()
