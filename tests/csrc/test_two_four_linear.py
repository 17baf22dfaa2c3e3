"""The products of 2:4 weights, called with addresses."""

import numpy as np
import pytest
from hypothesis import given

from sparsekern import _C
from tests.csrc import calls
from tests.csrc.memory import Buffer
from tests.csrc.numerics import (
    BFLOAT16,
    DTYPES,
    FLOAT32,
    assert_same,
    generators,
    integer,
    pick,
    small_integers,
    stored,
    untouched,
)
from tests.csrc.test_linear import ISA, LAYOUTS, laid_out
from tests.csrc.two_four import PAIRS, as_metadata, gathered, spread

# Up to eight samples are few, up to sixteen are two times a few; then panels.
BATCHES = (*range(18), 31, 33, 64, 129, 200)


def draw_problem(generator, dtypes=DTYPES):
    """What the products of one layer share."""
    rows, groups, m = integer(generator, 1, 140), integer(generator, 1, 90), pick(generator, BATCHES)
    dtype, (at_page_end, with_bias) = pick(generator, dtypes), generator.random(2) < 0.5
    bias = Buffer(stored(small_integers(generator, rows), dtype), at_page_end) if with_bias else None
    pairs = PAIRS[generator.integers(0, 6, (rows, groups))]
    values = small_integers(generator, rows, 2 * groups)
    x, grad_y = small_integers(generator, m, 4 * groups), small_integers(generator, m, rows)
    return {
        "generator": generator,
        "isa": pick(generator, ISA),
        "dtype": dtype,
        "threads": integer(generator, 1, 3),
        "at_page_end": at_page_end,
        "pairs": pairs,
        "weight": spread(values, pairs),
        "number": values,
        "values": Buffer(stored(values, dtype), at_page_end),
        "metadata": Buffer(as_metadata(pairs), at_page_end),
        "x": x,
        "grad_y": grad_y,
        "x_at": laid_out(x, dtype, pick(generator, LAYOUTS), at_page_end),
        "grad_y_at": laid_out(grad_y, dtype, pick(generator, LAYOUTS), at_page_end),
        "bias": bias,
    }


def sizes(p):
    rows, columns = p["weight"].shape
    return [calls.size(rows), calls.size(columns)]


def matrix(p, name):
    at, *strides = p[f"{name}_at"]
    return calls.matrix(at, *p[name].shape, *strides)


def bias_of(p):
    if p["bias"] is None:
        return [calls.Argument(0), calls.Argument(0)], 0
    numbers = p["bias"].array
    if p["dtype"] == BFLOAT16:
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return calls.data(p["bias"], optional=True), numbers.astype(np.float64)


def output(p, count):
    return Buffer(untouched(count, p["dtype"]), p["at_page_end"])


def head(p, values):
    return [calls.choice(p["dtype"], 3), *calls.data(values), *calls.data(p["metadata"]), *sizes(p)]


def linear(p):
    y = output(p, len(p["x"]) * len(p["weight"]))
    bias, numbers = bias_of(p)
    arguments = [*head(p, p["values"]), *matrix(p, "x"), *bias, *calls.result(y), calls.threads(p["threads"])]
    return calls.Call(_C.two_four.linear, arguments, [y]), p["x"] @ p["weight"].T + numbers


def grad_input(p):
    grad_x = output(p, p["x"].size)
    arguments = [
        *head(p, p["values"]),
        *matrix(p, "grad_y"),
        *calls.result(grad_x),
        calls.threads(p["threads"]),
    ]
    return calls.Call(_C.two_four.linear_grad_input, arguments, [grad_x]), p["grad_y"] @ p["weight"]


def grad_values(p):
    result = output(p, p["values"].count)
    arguments = [
        calls.choice(p["dtype"], 3),
        *matrix(p, "grad_y"),
        *calls.without_rows(matrix(p, "x")),
        *calls.data(p["metadata"]),
        *sizes(p),
        *calls.data(result),
        calls.threads(p["threads"]),
    ]
    expected = gathered(p["grad_y"].T @ p["x"], p["pairs"])
    return calls.Call(_C.two_four.linear_grad_values, arguments, [result]), expected


@given(generators())
def test_products_are_exact(generator):
    problem = draw_problem(generator)
    _C.set_isa(problem["isa"])
    call, expected = pick(generator, (linear, grad_input, grad_values))(problem)
    calls.refuse_wrong_arguments(call, generator)
    call()
    (out,) = call.outputs
    assert_same(out.array, expected, problem["dtype"])
    assert out.is_intact()


@given(generators())
def test_any_metadata_is_safe(generator):
    """Columns that do not ascend, or are one twice, and bits behind the last group: no access beyond."""
    problem = draw_problem(generator)
    _C.set_isa(problem["isa"])
    call, _ = pick(generator, (linear, grad_input, grad_values))(problem)
    metadata = problem["metadata"].array
    metadata[:] = generator.integers(0, 256, metadata.size)
    call()
    assert call.outputs[0].is_intact()


@given(generators())
def test_int8_products_are_exact(generator):
    """The formula of two_four_linear.h in float32, step by step."""
    problem = draw_problem(generator, dtypes=(FLOAT32, BFLOAT16))
    given_scale, special = generator.random(2) < 0.5
    _C.set_isa(problem["isa"])
    x, at_page_end = problem["x"].astype(np.float32), problem["at_page_end"]
    rows, columns = problem["weight"].shape
    weight = generator.integers(-128, 128, problem["number"].shape)
    values = Buffer(weight.astype(np.int8), at_page_end)
    scale = Buffer(2.0 ** generator.integers(-9, 0, rows).astype(np.float32), at_page_end)
    if special and x.size and problem["dtype"] == FLOAT32:
        x_at, *strides = problem["x_at"]
        wild = generator.choice([np.nan, np.inf, -np.inf, 1e38, 1e-45, 0.0], x_at.count).astype(np.float32)
        x_at.array[:] = np.where(generator.random(x_at.count) < 0.01, wild, x_at.array)
        x = np.lib.stride_tricks.as_strided(x_at.array, x.shape, [4 * stride for stride in strides]).copy()
    x_scale = Buffer(np.full(1, 0.03125, np.float32), at_page_end)
    y = output(problem, len(x) * rows)
    bias, numbers = bias_of(problem)
    address, _ = calls.data(x_scale, optional=True)
    arguments = [
        calls.Argument(problem["dtype"], (1, *calls.choice(0, 3).wrong)),
        *calls.data(values),
        *calls.data(problem["metadata"]),
        *sizes(problem),
        *calls.data(scale),
        *matrix(problem, "x"),
        address if given_scale else calls.Argument(0, address.wrong),
        *bias,
        *calls.result(y),
        calls.threads(problem["threads"]),
    ]
    call = calls.Call(_C.two_four.linear_int8, arguments, [y])
    calls.refuse_wrong_arguments(call, generator)
    call()
    assert y.is_intact()
    if np.isfinite(x).all() and np.abs(x).max(initial=0) < 1e30:
        largest = np.abs(x).max(1, keepdims=True) if x.size else np.zeros((len(x), 1), np.float32)
        s = x_scale.array if given_scale else np.where(largest == 0, np.float32(1), largest / np.float32(127))
        quantized = np.clip(np.rint(x / s), -127, 127).astype(np.int64)
        sums = quantized @ spread(weight, problem["pairs"]).T
        expected = sums.astype(np.float32) * (s * scale.array).astype(np.float32)
        assert_same(
            y.array, expected + numbers.astype(np.float32) if np.ndim(numbers) else expected, problem["dtype"]
        )


@pytest.mark.parametrize(
    ("m", "rows", "columns"), [(0, 0, 0), (3, 0, 8), (3, 5, 0), (2**40, 0, 8), (2**60, 0, 8)]
)
def test_no_weights_are_no_sums(m, rows, columns):
    """Also of more samples than there is memory for, where strides of 0 say that all are one."""
    x, y = Buffer(np.ones(8, np.float32), True), Buffer(np.full(15, np.nan, np.float32), True)
    scale = Buffer(np.ones(rows, np.float32), True)
    weight = 0, 0, 0, 0, rows, columns
    of_x, of_y = (*x, m, 0, 1), (*y, m, 0, 0)
    results = (
        lambda: _C.two_four.linear(FLOAT32, *weight, *of_x, 0, 0, *y, 1),
        lambda: _C.two_four.linear_grad_values(FLOAT32, *of_y, *x, 0, 1, 0, 0, rows, columns, 0, 0, 1),
        lambda: _C.two_four.linear_int8(FLOAT32, *weight, *scale, *of_x, 0, 0, 0, *y, 1),
    )
    for result in results:
        if m > 2**48:
            with pytest.raises(ValueError, match="expected at most 2\\^48 elements"):
                result()
        else:
            result()
    assert set(y.array[: m * rows if rows else 0]) <= {0.0}
