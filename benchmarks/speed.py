"""Linear layers and convolutions: times of all contenders, and the sweep for the break-even sparsity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.cases import (
    CONV_CASES,
    DIRECTIONS,
    LINEAR_CASES,
    QUICK_CONV_CASES,
    QUICK_LINEAR_CASES,
    SWEEP,
    Case,
    Problem,
)
from benchmarks.contenders import DENSE, SPARSE
from benchmarks.measure import compare
from benchmarks.settings import Settings

CASES: dict[str, Sequence[Case]] = {"linear": LINEAR_CASES, "conv": CONV_CASES}
QUICK_CASES: dict[str, Sequence[Case]] = {"linear": QUICK_LINEAR_CASES, "conv": QUICK_CONV_CASES}


def cases(kind: str, settings: Settings) -> Sequence[Case]:
    return (QUICK_CASES if settings.quick else CASES)[kind]


def layers(kind: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """One record for each case, sparsity and direction: the times of every contender."""
    for case in cases(kind, settings):
        for sparsity in settings.sparsities:
            problem = Problem(case, sparsity)
            for direction in DIRECTIONS:
                settings.progress(f"{kind} {case.name}, {sparsity:.0%}, {direction}")
                yield {
                    "case": case.name,
                    "direction": direction,
                    "sparsity": sparsity,
                    "times": compare(problem, direction, seconds=settings.seconds),
                }


def sweep(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record for each case and sparsity: the forward pass, sparse and dense alone."""
    for kind in CASES:
        for case in cases(kind, settings):
            for sparsity in SWEEP:
                settings.progress(f"break-even, {kind} {case.name}, {sparsity:.0%}")
                problem = Problem(case, sparsity)
                yield {
                    "kind": kind,
                    "case": case.name,
                    "sparsity": sparsity,
                    "times": compare(problem, "forward", seconds=settings.seconds, names=(DENSE, SPARSE)),
                }


def speedup(record: dict[str, Any], name: str = SPARSE, over: str = DENSE) -> float | None:
    """Median time of `over` divided by that of `name`; None where one of them has no time."""
    times = [record["times"].get(key, {}).get("median_ms") for key in (over, name)]
    return None if None in times else times[0] / times[1]


def break_even(points: dict[float, float]) -> tuple[str, float]:
    """The sparsity above which sparse stays faster, from speed-ups by sparsity.

    Returns
    -------
    kind : str
        ``"at"``: it crosses between two measured sparsities, and the number is where a straight line between
        them is at 1; ``"below"``: faster everywhere from the number, the lowest sparsity measured, on;
        ``"above"``: not faster even at the number, the highest one.
    sparsity : float
    """
    order = sorted(points)
    if points[order[-1]] <= 1:
        return "above", order[-1]
    for low, high in zip(order[-2::-1], order[:0:-1]):
        if points[low] <= 1:
            return "at", low + (high - low) * (1 - points[low]) / (points[high] - points[low])
    return "below", order[0]
