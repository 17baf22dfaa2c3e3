"""Training on several processes: sums over them, and proof that they hold the same patterns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparsekern.formats.checks import describe

__all__ = ["Ranks", "full", "write_full"]

# Elements in a message: what a reduction needs beside the tensor itself stays small.
BAND = 1 << 24
WORLD = "world"


class Ranks:
    """The processes that train one model together.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup, ``"world"`` or None
        ``"world"``: all processes, once `torch.distributed` is initialized; None: this one alone.

    Raises
    ------
    TypeError
        For anything else.
    """

    def __init__(self, process_group: Any = WORLD) -> None:
        known = process_group is None or process_group == WORLD
        if not known and not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
            raise TypeError(
                f"process_group must be 'world', None or a ProcessGroup, got {describe(process_group)}"
            )
        self._group = process_group

    @property
    def size(self) -> int:
        """Number of processes, 1 without `torch.distributed`."""
        if self._group is None or not dist.is_available() or not dist.is_initialized():
            return 1
        return dist.get_world_size(self._the_group)

    @property
    def _the_group(self) -> Any:
        return None if self._group == WORLD else self._group

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by its sum over all processes, band by band: the same bits on each."""
        if self.size > 1:
            for band in tensor.view(-1).split(BAND):
                dist.all_reduce(band, group=self._the_group)
        return tensor

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether something holds in at least one process; `device` is where the group communicates from."""
        if self.size == 1:
            return here
        return bool(self.sum_(torch.tensor([int(here)], device=device)))

    def check_same(
        self, names: Sequence[str], checksums: Sequence[int], what: str, device: torch.device
    ) -> None:
        """Raise in every process unless all of them have the same checksums.

        Parameters
        ----------
        names : sequence of str
            What each checksum is of.
        checksums : sequence of int
            Signed 64-bit integers.
        what : str
            When, for the message.
        device : torch.device
            Where the process group communicates from.

        Raises
        ------
        RuntimeError
            Names what differs, and in which processes from the first.
        """
        if self.size == 1:
            return
        mine = torch.tensor(checksums, dtype=torch.int64, device=device)
        lengths = self._gather(torch.tensor([len(mine)], dtype=torch.int64, device=device))
        if len(set(lengths.flatten().tolist())) > 1:
            raise RuntimeError(
                f"{what}: the processes drive {lengths.flatten().tolist()} layers, not the same"
            )
        differs = (gathered := self._gather(mine)) != gathered[:1]
        for i in differs.any(0).nonzero().flatten().tolist():
            ranks = ", ".join(map(str, differs[:, i].nonzero().flatten().tolist()))
            raise RuntimeError(
                f"{what}: {names[i]} differs between processes (rank {ranks} from rank 0); build the model "
                "with one seed in all of them, or load one checkpoint into all"
            )

    def _gather(self, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor, group=self._the_group)
        return torch.stack(parts).cpu()


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 has spread over processes; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def write_full(target: Tensor, whole: Tensor) -> None:
    """Write `whole`, the same in all processes, into a tensor or into this process's part of it."""
    if not hasattr(target, "full_tensor"):
        target.copy_(whole)
        return
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole, so nothing is sent.
    mine = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
    target.to_local().copy_(mine.to_local())
