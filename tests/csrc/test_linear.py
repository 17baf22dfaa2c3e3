"""`linear` and its gradients, called with addresses."""

import numpy as np
from hypothesis import given

from sparsekern import _C
from tests.csrc import calls
from tests.csrc.candidates import check_passes
from tests.csrc.memory import Buffer
from tests.csrc.numerics import (
    DTYPES,
    assert_same,
    generators,
    integer,
    pick,
    small_integers,
    stored,
    untouched,
)
from tests.csrc.patterns import draw_pattern

ISA = _C.isa_levels()
# Narrow panels of every width, one wide panel, several.
BATCHES = (*range(18), *range(28, 35), 63, 65, 127, 129, 200, 257)
LAYOUTS = ("rows", "rows", "columns", "gaps")


def laid_out(numbers, dtype, layout, at_page_end):
    """A buffer that holds a matrix, and its two strides."""
    rows, cols = numbers.shape
    if layout == "columns":
        return Buffer(stored(numbers.T, dtype), at_page_end), 1, max(rows, 1)
    pitch = cols + 3 if layout == "gaps" else cols
    wide = np.zeros((rows, pitch))
    wide[:, :cols] = numbers
    last = wide.reshape(-1)[: max(0, rows * pitch - (pitch - cols))]
    return Buffer(stored(last, dtype), at_page_end), pitch, 1


def draw_problem(generator):
    """What the three products of one layer share."""
    pattern = draw_pattern(generator)
    rows, cols = pattern.matrix.shape
    m, dtype, at_page_end = pick(generator, BATCHES), pick(generator, DTYPES), pick(generator, (False, True))
    weight = np.zeros((rows, cols))
    values = small_integers(generator, pattern.nnz)
    weight[pattern.rows, pattern.cols] = values
    x, grad_y = small_integers(generator, m, cols), small_integers(generator, m, rows)
    return {
        "generator": generator,
        "pattern": pattern,
        "words": Buffer(pattern.words, at_page_end),
        "isa": pick(generator, ISA),
        "dtype": dtype,
        "threads": integer(generator, 1, 3),
        "m": m,
        "at_page_end": at_page_end,
        "weight": weight,
        "x": x,
        "grad_y": grad_y,
        "bias": small_integers(generator, rows) if pick(generator, (False, True)) else None,
        "values": Buffer(stored(values, dtype), at_page_end),
        "x_at": laid_out(x, dtype, pick(generator, LAYOUTS), at_page_end),
        "grad_y_at": laid_out(grad_y, dtype, pick(generator, LAYOUTS), at_page_end),
    }


def linear(p):
    bias = Buffer(stored([] if p["bias"] is None else p["bias"], p["dtype"]), p["at_page_end"])
    y = Buffer(untouched(p["m"] * len(p["weight"]), p["dtype"]), p["at_page_end"])
    x, *strides = p["x_at"]
    bias_arguments = calls.data(bias, optional=True)
    if p["bias"] is None:
        bias_arguments = [calls.Argument(0), calls.Argument(0)]
    arguments = [
        calls.choice(p["dtype"], 3),
        *calls.words(p["words"]),
        *calls.data(p["values"]),
        *calls.matrix(x, *p["x"].shape, *strides),
        *bias_arguments,
        *calls.result(y),
        calls.threads(p["threads"]),
    ]
    expected = p["x"] @ p["weight"].T + (0 if p["bias"] is None else p["bias"])
    return calls.Call(_C.linear, arguments, [y], [bias]), expected


def grad_input(p):
    grad_x = Buffer(untouched(p["m"] * p["weight"].shape[1], p["dtype"]), p["at_page_end"])
    grad_y, *strides = p["grad_y_at"]
    arguments = [
        calls.choice(p["dtype"], 3),
        *calls.words(p["words"]),
        *calls.data(p["values"]),
        *calls.matrix(grad_y, *p["grad_y"].shape, *strides),
        *calls.result(grad_x),
        calls.threads(p["threads"]),
    ]
    return calls.Call(_C.linear_grad_input, arguments, [grad_x]), p["grad_y"] @ p["weight"]


def grad_values(p):
    pattern = p["pattern"]
    out = Buffer(untouched(pattern.nnz, p["dtype"]), p["at_page_end"])
    grad_y, *y_strides = p["grad_y_at"]
    x, *x_strides = p["x_at"]
    arguments = [
        calls.choice(p["dtype"], 3),
        *calls.words(p["words"]),
        *calls.matrix(grad_y, *p["grad_y"].shape, *y_strides),
        *calls.without_rows(calls.matrix(x, *p["x"].shape, *x_strides)),
        *calls.data(out),
        calls.threads(p["threads"]),
    ]
    expected = (p["grad_y"].T @ p["x"])[pattern.rows, pattern.cols]
    return calls.Call(_C.linear_grad_values, arguments, [out]), expected


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
def test_growth_candidates_are_exact(generator):
    problem = draw_problem(generator)
    _C.set_isa(problem["isa"])
    grad_y, *y_strides = problem["grad_y_at"]
    x, *x_strides = problem["x_at"]
    arguments = [
        calls.choice(problem["dtype"], 3),
        *calls.words(problem["words"]),
        *calls.matrix(grad_y, *problem["grad_y"].shape, *y_strides),
        *calls.without_rows(calls.matrix(x, *problem["x"].shape, *x_strides)),
        calls.threads(problem["threads"]),
    ]
    call = calls.Call(_C.grow_candidates, arguments)
    calls.refuse_wrong_arguments(call, problem["generator"])
    check_passes(call(), problem["grad_y"].T @ problem["x"], problem)
