"""When updates come: after which of the steps that an optimizer really takes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Timetable", "left_out"]


def left_out(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """1 if the call of ``step`` that is being made takes no step, 0 if it does; None if all calls do."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf.detach().ne(0).any().long() if isinstance(found_inf, Tensor) else None


class Timetable:
    """Counts an optimizer's steps, and says which ones an update follows.

    Where a scaled gradient is not finite, `torch.amp.GradScaler` does not call ``step`` at all, except for
    optimizers with fused kernels: these are called in any case and find a flag on the device. The flags are
    added up there and read only where an update may be due, so that no other step waits for the device.

    Parameters
    ----------
    every : int
        Steps between updates.
    stop_at : int or None
        No update comes after this many steps or later.

    Attributes
    ----------
    next_update : int or None
        Number of steps after which the next update comes.
    """

    def __init__(self, every: int, stop_at: int | None) -> None:
        self._every = every
        self._stop_at = stop_at
        self._calls = 0
        self._left_out: Tensor | None = None
        self.next_update = self._update_after(0)

    @property
    def steps(self) -> int:
        """Steps taken; waits for the device if it has flags to read."""
        if self._left_out is not None:
            self._calls -= int(self._left_out)
            self._left_out = None
        return self._calls

    def add_call(self, optimizer: torch.optim.Optimizer) -> None:
        """Count a call of ``step``, from within which this is called."""
        self._calls += 1
        flag = left_out(optimizer)
        if flag is not None:
            self._left_out = flag if self._left_out is None else self._left_out + flag

    def within(self, calls: int) -> bool:
        """Whether an update can follow one of the next so many calls of ``step``, as far as is known without
        waiting for the device."""
        return self.next_update is not None and self._calls + calls >= self.next_update

    def is_next(self) -> bool:
        """Whether an update follows the next step, if it is taken."""
        return self.within(1) and self.steps + 1 >= self.next_update

    def is_due(self) -> bool:
        """Whether the step that was just taken is followed by an update."""
        return self.within(0) and self.steps >= self.next_update

    def advance(self) -> None:
        """The update that was due is done with."""
        self.next_update = self._update_after(self.steps)

    def postpone(self) -> None:
        """The update that was due comes after the next step, or not at all if that is beyond the last."""
        self.next_update = self._unless_stopped(self.steps + 1)

    def resume(self, steps: int, next_update: int | None) -> None:
        """Go on from another count."""
        self._calls, self._left_out, self.next_update = steps, None, next_update

    def _update_after(self, step: int) -> int | None:
        return self._unless_stopped((step // self._every + 1) * self._every)

    def _unless_stopped(self, step: int) -> int | None:
        return None if self._stop_at is not None and step >= self._stop_at else step
