"""The extension checks every size and address it is handed: a mistake above it is an error, never a crash."""

from __future__ import annotations

import pytest

# The arguments of a call that is right, by name: of a 4 x 6 weight and 4 x 3 x 2 x 2 kernels, all active.
CALLS = """
import functools, torch
from sparsekern import native
from sparsekern.formats import Pattern

torch.set_num_threads(1)
matrix = Pattern.from_mask(torch.ones(4, 6, dtype=torch.bool)).data
kernel = Pattern.from_mask(torch.ones(4, 3, 2, 2, dtype=torch.bool)).data
# Room for every buffer; the counts are what the calls are told.
room = {name: torch.zeros(4096) for name in ("values", "x", "grad_y", "bias", "out")}
at = {name: tensor.data_ptr() for name, tensor in room.items()}
zeros = torch.zeros(4096, dtype=torch.int32)
MATRIX = dict(dtype=0, pattern=matrix.data_ptr(), words=matrix.numel())
KERNEL = dict(
    dtype=0, pattern=kernel.data_ptr(), words=kernel.numel(), shape=(2, 1, 5, 5, 1, 1, 0, 0, 1, 1)
)
VALUES = dict(values=at["values"], value_count=24)
TAPS = dict(values=at["values"], value_count=48)
X = dict(x=at["x"], x_count=18)
GRAD_Y = dict(grad_y=at["grad_y"], grad_y_count=12, m=3, y_row_stride=4, y_col_stride=1)
BIAS = dict(bias=at["bias"], bias_count=4)
RIGHT = {
    "linear": {**MATRIX, **VALUES, **X, "m": 3, "row_stride": 6, "col_stride": 1, **BIAS, "y": at["out"],
               "y_count": 12},
    "linear_grad_input": {**MATRIX, **VALUES, **GRAD_Y, "grad_x": at["out"], "grad_x_count": 18},
    "linear_grad_values": {
        **MATRIX, **GRAD_Y, **X, "row_stride": 6, "col_stride": 1, "out": at["out"], "out_count": 24
    },
    "conv2d": {**KERNEL, **TAPS, "x": at["x"], "x_count": 150, **BIAS, "y": at["out"], "y_count": 128},
    "conv2d_grad_input": {
        **KERNEL, **TAPS, "grad_y": at["grad_y"], "grad_y_count": 128, "grad_x": at["out"],
        "grad_x_count": 150
    },
    "conv2d_grad_values": {
        **KERNEL, "grad_y": at["grad_y"], "grad_y_count": 128, "x": at["x"], "x_count": 150, "out": at["out"],
        "out_count": 48
    },
}

def call(function, changes):
    arguments = {**RIGHT[function], "threads": 1}
    assert set(changes) <= set(arguments), changes
    arguments.update(changes)
    if arguments["pattern"] == "zeros":
        arguments["pattern"] = zeros.data_ptr()
    if arguments["pattern"] == "matrix":
        arguments.update(pattern=matrix.data_ptr(), words=matrix.numel())
    if "shape" in arguments:
        arguments["shape"] = native._C.Conv2dShape(*arguments["shape"])
    getattr(native._C, function)(*arguments.values())
"""

LINEAR = ["linear", "linear_grad_input", "linear_grad_values"]
CONV2D = ["conv2d", "conv2d_grad_input", "conv2d_grad_values"]
GEOMETRY = {
    "batch -1": ((-1, 1, 5, 5, 1, 1, 0, 0, 1, 1), "batch: expected at least 0, got -1"),
    "groups 0": ((2, 0, 5, 5, 1, 1, 0, 0, 1, 1), "groups: expected at least 1, got 0"),
    "groups 3": (
        (2, 3, 5, 5, 1, 1, 0, 0, 1, 1),
        "groups: expected a divisor of the output channels 4, got 3",
    ),
    "height -1": ((2, 1, -1, 5, 1, 1, 0, 0, 1, 1), "height: expected at least 0, got -1"),
    "width -5": ((2, 1, 5, -5, 1, 1, 0, 0, 1, 1), "width: expected at least 0, got -5"),
    "stride 0": ((2, 1, 5, 5, 0, 1, 0, 0, 1, 1), "stride: expected at least 1, got 0"),
    "padding -1": ((2, 1, 5, 5, 1, 1, 0, -1, 1, 1), "padding: expected at least 0, got -1"),
    "dilation 0": ((2, 1, 5, 5, 1, 1, 0, 0, 0, 1), "dilation: expected at least 1, got 0"),
    "another width": ((2, 1, 5, 6, 1, 1, 0, 0, 1, 1), "elements"),
    "another stride": ((2, 1, 5, 5, 2, 1, 0, 0, 1, 1), "elements"),
    "two groups": ((2, 2, 5, 5, 1, 1, 0, 0, 1, 1), "elements"),
}


def wrong_calls():
    """Name of a case to its function, what is changed in the right call, and a part of the message."""
    for function in LINEAR + CONV2D:
        yield f"{function}: dtype 7", function, {"dtype": 7}, "dtype: expected 0 (float32), 1 (float64) or 2"
        yield f"{function}: dtype -1", function, {"dtype": -1}, "got -1"
        yield f"{function}: threads 0", function, {"threads": 0}, "threads: expected at least 1, got 0"
        yield f"{function}: threads -3", function, {"threads": -3}, "threads: expected at least 1, got -3"
        yield f"{function}: no pattern", function, {"pattern": 0}, "pattern: the data must hold at least"
        yield f"{function}: 8 words", function, {"words": 8}, "pattern: the data must hold at least"
        yield f"{function}: truncated", function, {"words": 40}, "words, but the data holds 40"
        yield (
            f"{function}: no magic",
            function,
            {"pattern": "zeros"},
            "pattern: the first word is not the magic",
        )
    for function, count in [
        ("linear", 24),
        ("linear_grad_input", 24),
        ("conv2d", 48),
        ("conv2d_grad_input", 48),
    ]:
        for wrong in (count - 1, count + 1, 0, -1):
            message = f"values: expected length {count}, got {wrong}"
            yield f"{function}: {wrong} values", function, {"value_count": wrong}, message
        yield f"{function}: no values", function, {"values": 0}, "values: null data"
    for function, count in [("linear_grad_values", 24), ("conv2d_grad_values", 48)]:
        for wrong in (count - 1, count + 1, 0):
            message = f"grad_values: expected length {count}, got {wrong}"
            yield f"{function}: {wrong} values", function, {"out_count": wrong}, message
        yield f"{function}: no values", function, {"out": 0}, "grad_values: null data"
    for function in ("linear", "conv2d"):
        yield f"{function}: bias of 3", function, {"bias_count": 3}, "bias: expected length 4, got 3"
    yield from wrong_matrices()
    yield from wrong_images()


def wrong_matrices():
    # Each input: its function and arguments, its right number of elements, and another that is out of reach.
    for function, name, strides, count in [
        ("linear", "x", ("row_stride", "col_stride"), 18),
        ("linear_grad_values", "x", ("row_stride", "col_stride"), 18),
        ("linear_grad_input", "grad_y", ("y_row_stride", "y_col_stride"), 12),
        ("linear_grad_values", "grad_y", ("y_row_stride", "y_col_stride"), 12),
    ]:
        case = f"{function}: {name}"
        reach = f"{name}: its strides reach element"
        yield (
            f"{case} too short",
            function,
            {f"{name}_count": count - 1},
            f"{reach} {count - 1} of {count - 1}",
        )
        yield f"{case} empty", function, {f"{name}_count": 0}, reach
        yield f"{case} of another stride", function, {strides[0]: 7}, reach
        yield f"{case} transposed", function, {strides[0]: 1, strides[1]: 6}, reach
        yield f"{case} of negative stride", function, {strides[1]: -1}, f"{name}: negative stride"
        yield f"{case} of no address", function, {name: 0}, f"{name}: null data"
    for function, name in [
        ("linear", "x"),
        ("linear_grad_input", "grad_y"),
        ("linear_grad_values", "grad_y"),
    ]:
        stride = "row_stride" if name == "x" else "y_row_stride"
        yield f"{function}: batch -1", function, {"m": -1}, f"{name}: "
        yield f"{function}: batch too large", function, {"m": 4}, "its strides reach element"
        # The last element's index needs more than 64 bits.
        huge = {"m": 2**62 + 1, stride: 4}
        yield f"{function}: batch beyond 64 bits", function, huge, "its strides reach element"
    for function, name, count in [("linear", "y", 12), ("linear_grad_input", "grad_x", 18)]:
        message = f"{name}: its strides reach element {count - 1} of {count - 1}"
        yield f"{function}: {name} too short", function, {f"{name}_count": count - 1}, message
        yield f"{function}: no {name}", function, {name: 0}, f"{name}: null data"


def wrong_images():
    for function in CONV2D:
        for name, (shape, message) in GEOMETRY.items():
            yield f"{function}: {name}", function, {"shape": shape}, message
        message = "pattern: expected dimensions 4, got 2"
        yield f"{function}: a matrix's pattern", function, {"pattern": "matrix"}, message
    for function, name, count in [
        ("conv2d", "x", 150),
        ("conv2d", "y", 128),
        ("conv2d_grad_input", "grad_y", 128),
        ("conv2d_grad_input", "grad_x", 150),
        ("conv2d_grad_values", "grad_y", 128),
        ("conv2d_grad_values", "x", 150),
    ]:
        for wrong in (count - 1, count + 1, 0, -1):
            message = f"{name}: expected elements {count}, got {wrong}"
            yield f"{function}: {name} of {wrong}", function, {f"{name}_count": wrong}, message
        yield f"{function}: {name} of no address", function, {name: 0}, f"{name}: null data"


WRONG = {name: rest for name, *rest in wrong_calls()}


@pytest.fixture(scope="module")
def outcomes(run_isolated):
    calls = {name: (function, changes) for name, (function, changes, _) in WRONG.items()}
    calls.update({f"{function}: right": (function, {}) for function in LINEAR + CONV2D})
    cases = f"CASES = {{name: functools.partial(call, *c) for name, c in {calls!r}.items()}}\n"
    return run_isolated(CALLS + cases)


@pytest.mark.parametrize("function", LINEAR + CONV2D)
def test_the_call_that_the_others_change_is_right(outcomes, function):
    assert outcomes[f"{function}: right"] == "returned"


@pytest.mark.parametrize("name", WRONG)
def test_is_refused(outcomes, name):
    message = WRONG[name][-1]
    assert outcomes[name].startswith("ValueError: "), outcomes[name]
    assert message in outcomes[name]
