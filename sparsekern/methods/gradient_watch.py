"""The gradient of a weight at every position, of which a backward pass stores the active ones only.

A `GradientWatch` observes one weight. Between updates it only counts what a step's backward passes
contribute; for an update it keeps something of each contribution, as it is told.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.ops.observers import WeightGradient

__all__ = ["GradientWatch"]


class GradientWatch:
    """What belongs to the gradient that lies in ``parameter.grad``, or will at the end of the backward pass.

    Contributions count once autograd adds to ``parameter.grad`` in the same backward pass, so a gradient that
    is only asked for (`torch.autograd.grad`) leaves no trace; and they are forgotten when that gradient was
    thrown away, as after a step that a GradScaler left out. Where another object than the Parameter receives
    the gradient (FSDP2 shards it), every contribution counts.

    Parameters
    ----------
    parameter : nn.Parameter
        The weight in the optimizer.

    Attributes
    ----------
    keep : callable or None
        Makes what is kept of a contribution; None: it is only counted.
    kept : list
        That, of each contribution since the last `clear`.
    count : int
        Number of contributions since then.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.keep: Callable[[WeightGradient], Any] | None = None
        self.kept: list[Any] = []
        self.count = 0
        self._parameter = parameter
        # By backward pass: one may run inside of another, as reentrant checkpoints do.
        self._pending: dict[int, list[Any]] = {}
        self._latest = -1
        self._version = -1
        self._remove_hook: weakref.finalize | None = None

    def start(self) -> None:
        """Begin to watch the Parameter; FSDP2's never receives a gradient from autograd itself."""
        if hasattr(self._parameter, "full_tensor"):
            return
        # Python's garbage collector does not see that a Parameter holds its hooks, so these do not hold it.
        weak = weakref.ref(self)

        def accumulated(parameter: Tensor) -> None:
            watch = weak()
            if watch is not None:
                watch._accumulated(parameter)

        handle = self._parameter.register_post_accumulate_grad_hook(accumulated)
        self._remove_hook = weakref.finalize(self, handle.remove)

    def stop(self) -> None:
        """Forget all contributions, and watch no more."""
        self.clear()
        if self._remove_hook is not None:
            # A finalizer that has been called is forgotten; one for each update would stay for good.
            self._remove_hook()
            self._remove_hook = None

    def __call__(self, gradient: WeightGradient) -> None:
        task = torch._C._current_graph_task_id()
        if task < 0:
            return  # called by hand, outside any backward pass
        if task > self._latest:
            self._latest = task
            if self.count and self._was_discarded():
                self._forget()
        pending = self._pending.setdefault(task, [])
        if self.keep is None:
            pending.append(None)
        else:
            with torch.no_grad():
                pending.append(self.keep(gradient))
        if self._remove_hook is None:
            self._confirm(task)

    def take_pending(self) -> list[Any]:
        """What was kept of the last backward pass, which did not accumulate (`torch.autograd.grad`)."""
        taken = self._pending[max(self._pending)] if self._pending else []
        self._pending.clear()
        return taken

    def clear(self) -> None:
        """Forget all contributions."""
        self._forget()
        self._pending.clear()

    def _accumulated(self, parameter: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task in self._pending:
            self._confirm(task)
            self._version = parameter.grad._version

    def _confirm(self, task: int) -> None:
        pending = self._pending.pop(task)
        self.count += len(pending)
        if self.keep is not None:
            self.kept += pending

    def _forget(self) -> None:
        self.kept.clear()
        self.count = 0

    def _was_discarded(self) -> bool:
        """Whether ``grad`` was set to None or to zeros since the last contribution was added to it."""
        grad = self._parameter.grad
        if grad is None:
            return True
        # Reading the gradient waits for a GPU, so only where something hangs on it.
        return self.keep is not None and grad._version != self._version and not bool(grad.any())
