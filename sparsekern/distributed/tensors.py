"""Tensors written and read by `torch.distributed.checkpoint`: each process its own parts of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from sparsekern.distributed.agreement import CheckpointError, Processes
from sparsekern.distributed.training import Sizes
from sparsekern.distributed.tree import is_sharded

__all__ = ["allocate", "read_tensors", "saved_sizes", "write_tensors"]


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], processes: Processes) -> None:
    """Write sharded tensors by their parts, and all others as the first process has them.

    Raises
    ------
    CheckpointError
        In all processes, where one fails.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter

    def write() -> None:
        checkpoint.save(
            dict(tensors),
            storage_writer=FileSystemWriter(folder, sync_files=True),
            # Not what comes cheapest: buffers may differ between processes.
            planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
            **_alone(processes),
        )

    _guarded(write, processes)


def read_tensors(folder: Path, tensors: dict[str, Tensor], processes: Processes) -> None:
    """Read into tensors of the saved sizes, sharded over any number of processes.

    Raises
    ------
    CheckpointError
        In all processes, where one fails.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import FileSystemReader

    _guarded(
        lambda: checkpoint.load(tensors, storage_reader=FileSystemReader(folder), **_alone(processes)),
        processes,
    )


def saved_sizes(folder: Path) -> Sizes:
    """Shape and dtype of all tensors in a folder."""
    from torch.distributed.checkpoint import FileSystemReader

    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {place: (tuple(entry.size), entry.properties.dtype) for place, entry in entries.items()}


def allocate(places: Iterable[str], sizes: Sizes, likes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Uninitialized tensors of the saved sizes: sharded as those in `likes` are, and on their devices."""
    made = {}
    for place in places:
        size, dtype = sizes[place]
        like = likes.get(place)
        if like is not None and is_sharded(like) and tuple(like.shape) == size:
            made[place] = torch.empty_like(like.detach(), dtype=dtype)
        else:
            device = "cpu" if like is None else like.device
            made[place] = torch.empty(size, dtype=dtype, device=device)
    return made


def _alone(processes: Processes) -> dict[str, bool]:
    """The option of one process among others; without a process group PyTorch needs none."""
    among_others = dist.is_initialized() and processes.size < dist.get_world_size()
    return {"no_dist": True} if among_others else {}


def _guarded(action: Callable[[], object], processes: Processes) -> None:
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            # One process is meant to be one.
            warnings.filterwarnings("ignore", "torch.distributed is .*(unavailable|uninitialized)")
            action()
    except CheckpointException as error:
        # It is no Exception, and all processes have it.
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        raise CheckpointError(processes.blame(rank, f"{type(cause).__name__}: {cause}")) from error
