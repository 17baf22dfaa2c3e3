"""What the options of the command come to."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.cases import SPARSITIES


@dataclass(frozen=True)
class Settings:
    """How a section measures.

    Attributes
    ----------
    quick : bool
        Tiny shapes and few repetitions: shows that everything runs, and says nothing about speed.
    sparsities : tuple of float
    seconds : float
        Time for each contender of a comparison, in seconds.
    device : str
        "cpu" or "cuda".
    deadline : float
        When sections on a GPU begin nothing more, as `time.monotonic`.
    tuned : bool
        Try the launch configs of each problem first, and measure the fastest.
    """

    quick: bool = False
    sparsities: tuple[float, ...] = SPARSITIES
    seconds: float = 0.5
    device: str = "cpu"
    deadline: float = float("inf")
    tuned: bool = False

    def progress(self, text: str) -> None:
        """What is measured now, on standard error; overwritten on a terminal."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def done(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
