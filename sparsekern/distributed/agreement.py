"""Work that succeeds in all processes, or ends with an error in all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from sparsekern.formats.checks import describe
from sparsekern.methods.ranks import WORLD, Ranks

__all__ = ["CheckpointError", "Processes"]

T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the process and the file."""


class Processes:
    """The processes that write or read one checkpoint.

    Parameters
    ----------
    process_group : ``"world"`` or None
        As of a method: all processes, once `torch.distributed` is initialized; None: this one alone.

    Attributes
    ----------
    rank, size : int
        Of this process, and how many there are.
    """

    def __init__(self, process_group: Any = WORLD) -> None:
        if process_group is not None and process_group != WORLD:
            raise TypeError(f"process_group must be 'world' or None, got {describe(process_group)}")
        self.size = Ranks(process_group).size
        self.rank = dist.get_rank() if self.size > 1 else 0

    def together(self, action: Callable[[], T]) -> list[T]:
        """What `action` returned in each process, by rank.

        Nobody is left waiting where one process fails: the error is known to all before any goes on.

        Raises
        ------
        TypeError, ValueError, CheckpointError
            As `action` raised it in this process.
        CheckpointError
            For any other error here, or one in another process.
        """
        result, error = None, None
        try:
            result = action()
        except Exception as caught:
            error = caught
        came = None if error is None else f"{type(error).__name__}: {error}"
        reports: list[Any] = [(result, came)] * self.size
        if self.size > 1:
            dist.all_gather_object(reports, (result, came))
        if isinstance(error, (TypeError, ValueError, CheckpointError)):
            raise error
        for rank, (_, came) in enumerate(reports):
            if came is not None:
                raise CheckpointError(self.blame(rank, came)) from error
        return [result for result, _ in reports]

    def blame(self, rank: int, came: str) -> str:
        """An error's text, with the process that it is of where there are several."""
        return came if self.size == 1 else f"process {rank} of {self.size}: {came}"

    def first(self, action: Callable[[], T]) -> T:
        """What `action` returned in the first process, which alone calls it; see :meth:`together`."""
        return self.together(lambda: action() if self.rank == 0 else None)[0]
