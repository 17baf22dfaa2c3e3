"""The process around the loop: signals and the device."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import torch

from sparsekern.experiments.errors import ExperimentError


class StopSignals:
    """Inside the block, the first SIGINT or SIGTERM only sets ``received``; a second one acts as it always
    did.

    A step of training is then never cut in two, and the run can save its state before it ends. Outside the
    main thread, where Python cannot handle signals, nothing changes.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class Stopped(Exception):
    """A signal ended the run early; ``step`` steps are in the checkpoint."""

    def __init__(self, received: signal.Signals, step: int) -> None:
        super().__init__(f"stopped by {received.name} after step {step:,}")
        self.received = received
        self.step = step


def usable_device(name: str) -> torch.device:
    """``torch.device(name)``, checked to be there.

    Raises
    ------
    ExperimentError
        If torch knows no such device, or there is none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExperimentError(
            f"--device must be a device torch can use here, got {name!r}: {reason}"
        ) from None
    return device


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Inside the block, this thread computes with 0 in place of numbers below the smallest normal one.

    Such numbers (below 1.2e-38 in float32) can slow a processor down many times, and the momentum of a unit
    that is dead decays through them. Threads that start inside the block do the same, others do not.
    """
    before = _flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside the block, PyTorch computes with so many threads, which decide the last bits of dense layers."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _flushes_denormals() -> bool:
    # PyTorch sets the processor's mode and cannot tell it; Python's own floats obey it too.
    return sys.float_info.min / 2 == 0
