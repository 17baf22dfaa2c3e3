"""One comparison: every contender is checked against float64 first, and only right ones are timed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import conv_contenders, linear_contenders
from benchmarks.cases import Problem
from benchmarks.contenders import DENSE, SPARSE, Contender
from sparsekern.timing import interleave

# Largest error over the largest right value. Float32 sums of 131,072 terms, the longest here, stay ten times
# below it; a wrong kernel is a thousand times above.
LARGEST_ERROR = 5e-5
# What a contender raises where it does not exist or cannot do the work.
MISSING = (ImportError, RuntimeError, NotImplementedError, AttributeError)
BUILDERS = {
    ("linear", "forward"): linear_contenders.FORWARD,
    ("linear", "backward"): linear_contenders.BACKWARD,
    ("conv", "forward"): conv_contenders.FORWARD,
    ("conv", "backward"): conv_contenders.BACKWARD,
}


def relative_error(got: Tensor, right: Tensor) -> float:
    """``max |got - right| / max |right|``; infinite for another shape and where `got` is not finite."""
    if got.shape != right.shape or not bool(got.isfinite().all()):
        return float("inf")
    return float((got.double() - right).abs().max() / right.abs().max().clamp_min(1e-300))


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def build(problem: Problem, direction: str, name: str) -> Contender:
    """The contender of that name; one of `MISSING` when what it is made of is not there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return BUILDERS[problem.case.kind, direction][name](problem)


def largest_error(contender: Contender, answers: Sequence[Tensor]) -> float:
    results = contender.dense(contender.run())
    return max(relative_error(got, right) for got, right in zip(results, answers, strict=True))


@torch.no_grad()
def compare(
    problem: Problem, direction: str, *, seconds: float, names: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Check and time the contenders of a problem.

    Parameters
    ----------
    problem : Problem
    direction : str
        ``"forward"``, or ``"backward"``: both gradients, the bias's left out.
    seconds : float
        As in `interleave`.
    names : sequence of str, optional
        Contenders to take; all by default.

    Returns
    -------
    dict of str to dict
        By contender: a `Timing.record` with its ``error``; ``{"wrong": error}``; or ``{"missing": reason}``.
    """
    answers = problem.answers(direction)
    found: dict[str, dict[str, Any]] = {}
    right: dict[str, Contender] = {}
    for name in names or BUILDERS[problem.case.kind, direction]:
        try:
            contender = build(problem, direction, name)
            error = largest_error(contender, answers)
        except MISSING as reason:
            if name in (DENSE, SPARSE):
                raise
            found[name] = {"missing": first_line(reason)}
            continue
        if error <= LARGEST_ERROR:
            right[name] = contender
            found[name] = {"error": float(f"{error:.2g}")}
        else:
            found[name] = {"wrong": error}
    timings = interleave({name: contender.run for name, contender in right.items()}, seconds=seconds)
    for name, timing in timings.items():
        found[name] = {**timing.record(), **found[name]}
    return found
