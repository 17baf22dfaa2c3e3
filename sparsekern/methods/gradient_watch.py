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
from torch.autograd import Variable

from sparsekern.ops.observers import WeightGradient

__all__ = ["GradientWatch"]


class GradientWatch:
    """What belongs to the gradient that lies in ``parameter.grad``, or will at the end of the backward pass.

    Contributions count once autograd adds to ``parameter.grad`` in the same backward pass, so a gradient that
    is only asked for (`torch.autograd.grad`) leaves no trace; and they are forgotten when that gradient was
    thrown away, as after a step that a GradScaler left out.

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

    def start(self, confirmed: bool) -> None:
        """Begin to watch.

        Parameters
        ----------
        confirmed : bool
            False: every contribution counts at once, for a Parameter that autograd adds nothing to.
        """
        if not confirmed:
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
        if task not in self._pending:
            self._pending[task] = []
            # A pass that has added nothing to the gradient by its end leaves nothing.
            Variable._execution_engine.queue_callback(lambda: self._pending.pop(task, None))
        with torch.no_grad():
            self._pending[task].append(None if self.keep is None else self.keep(gradient))
        if self._remove_hook is None:
            self._confirm(task)

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
        # Reading the gradient waits for a GPU, so only where something hangs on it. Of FSDP2's, a process
        # has a part, on which it must decide nothing.
        unread = self.keep is None or self._remove_hook is None or grad._version == self._version
        return not unread and not bool(grad.any())
