"""The comparisons of ``python -m benchmarks linear conv`` through pytest-benchmark.

``pytest benchmarks --benchmark-only`` takes one shape of each kind at 90 %, with ``--all-shapes`` all of
them. A contender's result is checked before it is timed.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from benchmarks.cases import CONV_CASES, LINEAR_CASES, SPARSITIES, Case, Problem
from benchmarks.measure import BUILDERS, LARGEST_ERROR, MISSING, build, first_line, largest_error

FEW = [(LINEAR_CASES[2], 0.90), (CONV_CASES[1], 0.90)]
ALL = [(case, sparsity) for case in (*LINEAR_CASES, *CONV_CASES) for sparsity in SPARSITIES]


def pytest_generate_tests(metafunc):
    chosen = ALL if metafunc.config.getoption("--all-shapes") else FEW
    runs = [
        pytest.param(case, sparsity, direction, name, id=f"{case.name}-{sparsity:.0%}-{direction}-{name}")
        for case, sparsity in chosen
        for (kind, direction), builders in BUILDERS.items()
        if kind == case.kind
        for name in builders
    ]
    metafunc.parametrize(("case", "sparsity", "direction", "name"), runs)


@lru_cache(maxsize=1)
def problem_of(case: Case, sparsity: float) -> Problem:
    return Problem(case, sparsity)


@lru_cache(maxsize=1)
def answers_of(case: Case, sparsity: float, direction: str) -> tuple[torch.Tensor, ...]:
    return problem_of(case, sparsity).answers(direction)


@torch.no_grad()
def test_op(benchmark, case, sparsity, direction, name):
    try:
        contender = build(problem_of(case, sparsity), direction, name)
        error = largest_error(contender, answers_of(case, sparsity, direction))
    except MISSING as reason:
        pytest.skip(first_line(reason))
    assert error <= LARGEST_ERROR
    benchmark.group = f"{case.kind} {case.name}, {sparsity:.0%}, {direction}"
    benchmark(contender.run)
