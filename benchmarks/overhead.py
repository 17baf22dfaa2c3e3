"""What one call costs before it computes anything: inputs so small that little else is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekern as sk
from benchmarks.settings import Settings
from sparsekern.timing import interleave

CALLS = 200
SIZE = 8
MODES = ("no gradient", "forward", "forward and backward")
Call = tuple[Callable[[Tensor], Tensor], list[Tensor], Tensor]


def _linear_calls() -> dict[str, Call]:
    """By name: a function of x, its parameters, and an x."""
    pattern = sk.Pattern.random((SIZE, SIZE), 0.5, generator=torch.Generator().manual_seed(0))
    x, weight, bias = torch.randn(1, SIZE), torch.randn(SIZE, SIZE), torch.randn(SIZE)
    values = pattern.pack(weight)
    for parameter in (weight, bias, values):
        parameter.requires_grad_()
    dense, sparse = nn.Linear(SIZE, SIZE), sk.nn.SparseLinear(SIZE, SIZE, pattern=pattern)
    op, shape = torch.ops.sparsekern.linear, pattern.shape
    return {
        "F.linear": (lambda x: F.linear(x, weight, bias), [weight, bias], x),
        "ops.linear": (lambda x: sk.ops.linear(x, values, pattern, bias), [values, bias], x),
        "torch.ops.sparsekern.linear": (
            lambda x: op(x, values, bias, pattern.data, shape, ""),
            [values, bias],
            x,
        ),
        "nn.Linear": (dense, [*dense.parameters()], x),
        "SparseLinear": (sparse, [*sparse.parameters()], x),
    }


def _conv2d_calls() -> dict[str, Call]:
    shape = (2, 2, 3, 3)
    pattern = sk.Pattern.random(shape, 0.5, generator=torch.Generator().manual_seed(0))
    x, weight, bias = torch.randn(1, 2, 4, 4), torch.randn(shape), torch.randn(2)
    values = pattern.pack(weight)
    for parameter in (weight, bias, values):
        parameter.requires_grad_()
    return {
        "F.conv2d": (lambda x: F.conv2d(x, weight, bias), [weight, bias], x),
        "ops.conv2d": (lambda x: sk.ops.conv2d(x, values, pattern, bias), [values, bias], x),
    }


def _in_mode(mode: str, call: Call) -> Callable[[], Any]:
    function, parameters, x = call
    if mode == "no gradient":
        return torch.no_grad()(lambda: function(x))
    x = x.clone().requires_grad_()
    if mode == "forward":
        return lambda: function(x)
    grad_y, inputs = torch.ones_like(function(x)), [x, *parameters]
    return lambda: torch.autograd.grad(function(x), inputs, grad_y)


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record for each call: its time in each mode."""
    calls = {**_linear_calls(), **_conv2d_calls()}
    times: dict[str, dict[str, Any]] = {name: {} for name in calls}
    for mode in MODES:
        settings.progress(f"overhead, {mode}")
        functions = {name: _in_mode(mode, call) for name, call in calls.items()}
        for name, timing in interleave(functions, seconds=settings.seconds, calls=CALLS).items():
            times[name][mode] = timing.record()
    for name in calls:
        yield {"call": name, "times": times[name]}
