"""Tuning: inside ``with tuned():`` each new problem tries its few configs and keeps the fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import torch

from sparsekern.kernels.configs import Config, Problem
from sparsekern.kernels.launch import LaunchError

__all__ = ["choose", "tuned"]

_tuning: ContextVar[bool] = ContextVar("sparsekern_tuning", default=False)
_fastest: dict[Problem, Config] = {}


@contextmanager
def tuned() -> Iterator[None]:
    """Measure the configs of each new problem inside the block; what is found holds for the process.

    A problem is an op on a shape (the number of samples up to the next power of two), a dtype and a device.
    Its first call runs each of at most 8 configs some times, so it takes seconds, most of them for compiling.
    While a CUDA graph is captured, and in the interpreter, nothing is measured.
    """
    token = _tuning.set(True)
    try:
        yield
    finally:
        _tuning.reset(token)


def choose(configs: Sequence[Config], problem: Problem, run: Callable[[Config], None]) -> Config:
    """The fastest config found for `problem`, or else the first of `configs`, its best guess."""
    key = replace(problem, samples=1 << max(problem.samples - 1, 0).bit_length())
    if key in _fastest:
        return _fastest[key]
    if not _tuning.get() or not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
        return configs[0]
    times = {}
    for config in configs:
        try:
            times[config] = _milliseconds(lambda config=config: run(config))
        except LaunchError:
            continue
    _fastest[key] = min(times, key=times.get) if times else configs[0]
    return _fastest[key]


def _milliseconds(work: Callable[[], None]) -> float:
    from triton.testing import do_bench

    return do_bench(work, warmup=10, rep=40, return_mode="median")
