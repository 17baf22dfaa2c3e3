"""Wall-clock time of functions that take turns, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

FEWEST, MOST = 7, 101
# Seconds that a sample takes at least, by repeating short calls. The first call after another contender's
# pays for a cold instruction cache, which a layer in a loop does not.
SHORTEST_SAMPLE = 5e-4


@dataclass(frozen=True)
class Timing:
    """Seconds for one call."""

    median: float
    minimum: float
    spread: float  # between the quartiles
    repetitions: int

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, min(samples), third - first, len(samples))

    def record(self) -> dict[str, float | int]:
        """In milliseconds, as the results file has it."""
        return {
            "median_ms": round(self.median * 1e3, 6),
            "min_ms": round(self.minimum * 1e3, 6),
            "spread_ms": round(self.spread * 1e3, 6),
            "repetitions": self.repetitions,
        }


def cpu_clock(function: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


class CudaClock:
    """Time on the GPU alone, its L2 cache flushed before each sample."""

    def __init__(self) -> None:
        # Many times the largest L2 cache there is. Writing it takes longer than the host takes to queue the
        # calls behind it, so that what is timed does not wait for the host.
        self._flush = torch.empty(1 << 30, dtype=torch.int8, device="cuda")

    def __call__(self, function: Callable[[], Any], calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls


def interleave(
    functions: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    calls: int | None = None,
    clock: Callable[[Callable[[], Any], int], float] = cpu_clock,
) -> dict[str, Timing]:
    """Time functions in rounds, in another random order each round.

    Parameters
    ----------
    functions : mapping
        By name. Each is called a few times first, untimed.
    seconds : float
        Meant for each function; decides how many samples it gets, between `FEWEST` and `MOST`. Those of a
        slow one are spread evenly over the rounds.
    calls : int, optional
        Calls that make one sample; by default as many as take `SHORTEST_SAMPLE`.
    clock : callable
        ``clock(function, calls)``: seconds for one call.

    Returns
    -------
    dict of str to Timing
    """
    order = random.Random(0)
    counts, repeats = {}, {}
    for name, function in functions.items():
        clock(function, calls or 1)
        once = max(min(clock(function, calls or 1) for _ in range(2)), 1e-9)
        repeats[name] = calls or math.ceil(SHORTEST_SAMPLE / once)
        counts[name] = max(FEWEST, min(MOST, round(seconds / (once * repeats[name]))))
    rounds = max(counts.values())
    samples: dict[str, list[float]] = {name: [] for name in functions}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(rounds):
            due = [n for n, c in counts.items() if (index + 1) * c // rounds > index * c // rounds]
            order.shuffle(due)
            for name in due:
                samples[name].append(clock(functions[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(values) for name, values in samples.items()}
