"""The native 2:4 products check every size and address they are handed: a mistake never is a crash."""

from __future__ import annotations

import pytest

# The arguments of a call that is right, by name: of a 4 x 12 weight and a batch of 3.
CALLS = """
import functools, torch
from sparsekern import native

room = {name: torch.zeros(4096) for name in ("values", "metadata", "x", "grad_y", "bias", "scale", "out")}
at = {name: tensor.data_ptr() for name, tensor in room.items()}
WEIGHT = dict(
    values=at["values"], value_count=24, metadata=at["metadata"], metadata_count=8, rows=4, cols=12
)
X = dict(x=at["x"], x_count=36)
X_STRIDES = dict(x_row_stride=12, x_col_stride=1)
GRAD_Y = dict(grad_y=at["grad_y"], grad_y_count=12, m=3, y_row_stride=4, y_col_stride=1)
BIAS = dict(bias=at["bias"], bias_count=4)
Y = dict(y=at["out"], y_count=12)
SCALE = dict(scale=at["scale"], scale_count=4)
RIGHT = {
    "linear": dict(dtype=0, **WEIGHT, **X, m=3, **X_STRIDES, **BIAS, **Y),
    "linear_grad_input": dict(dtype=0, **WEIGHT, **GRAD_Y, grad_x=at["out"], grad_x_count=36),
    "linear_grad_values": dict(
        dtype=0, **GRAD_Y, **X, **X_STRIDES, metadata=at["metadata"], metadata_count=8, rows=4, cols=12,
        values=at["out"], value_count=24,
    ),
    "linear_int8": dict(dtype=0, **WEIGHT, **SCALE, **X, m=3, **X_STRIDES, x_scale=0, **BIAS, **Y),
}

def call(function, changes):
    arguments = {**RIGHT[function], "threads": 1}
    assert set(changes) <= set(arguments), changes
    getattr(native._C.two_four, function)(*{**arguments, **changes}.values())
"""

FUNCTIONS = ["linear", "linear_grad_input", "linear_grad_values", "linear_int8"]


def wrong_calls():
    """Name of a case to its function, what is changed in the right call, and a part of the message."""
    for function in FUNCTIONS:
        name = "grad_values" if function == "linear_grad_values" else "values"
        for change, message in [
            ({"dtype": 7}, "dtype: expected 0 (float32), 1 (float64) or 2"),
            ({"threads": 0}, "threads: expected at least 1, got 0"),
            ({"rows": -1}, "rows: expected at least 0, got -1"),
            ({"cols": -4}, "columns: expected a multiple of 4, got -4"),
            ({"cols": 10}, "columns: expected a multiple of 4, got 10"),
            ({"rows": 2**40, "cols": 2**40}, "rows and columns: expected at most 2^48 elements"),
            ({"value_count": 23}, f"{name}: expected length 24, got 23"),
            ({"values": 0}, f"{name}: null data"),
            ({"metadata_count": 7}, "metadata: expected length 8, got 7"),
            ({"metadata": 0}, "metadata: null data"),
        ]:
            yield f"{function}: {change}", function, change, message
    for function, matrix, count in [
        ("linear", "x", 36),
        ("linear_int8", "x", 36),
        ("linear_grad_values", "x", 36),
        ("linear_grad_values", "grad_y", 12),
        ("linear_grad_input", "grad_y", 12),
    ]:
        stride = "x_row_stride" if matrix == "x" else "y_row_stride"
        for change, message in [
            (
                {f"{matrix}_count": count - 1},
                f"{matrix}: its strides reach element {count - 1} of {count - 1}",
            ),
            ({stride: 100}, f"{matrix}: its strides reach element"),
            ({stride: -1}, f"{matrix}: negative stride"),
            ({matrix: 0}, f"{matrix}: null data"),
            ({"m": -1}, ": "),
        ]:
            yield f"{function}: {change}", function, change, message
    for function in ("linear", "linear_int8"):
        yield f"{function}: bias", function, {"bias_count": 3}, "bias: expected length 4, got 3"
        yield f"{function}: y", function, {"y_count": 11}, "y: its strides reach element 11 of 11"
    yield "grad_x", "linear_grad_input", {"grad_x_count": 35}, "grad_x: its strides reach element 35 of 35"
    yield "scales", "linear_int8", {"scale_count": 3}, "scale: expected length 4, got 3"
    yield "float64", "linear_int8", {"dtype": 1}, "dtype: expected float32 or bfloat16"
    columns = {"cols": 264_212, "value_count": 4 * 132_106, "metadata_count": 4 * 33_027}
    yield "sums", "linear_int8", columns, "columns: expected at most 264208 for sums in int32, got 264212"


WRONG = {name: rest for name, *rest in wrong_calls()}


@pytest.fixture(scope="module")
def outcomes(run_isolated):
    calls = {name: (function, changes) for name, (function, changes, _) in WRONG.items()}
    calls.update({f"{function}: right": (function, {}) for function in FUNCTIONS})
    cases = f"CASES = {{name: functools.partial(call, *c) for name, c in {calls!r}.items()}}\n"
    return run_isolated(CALLS + cases)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_call_that_the_others_change_is_right(outcomes, function):
    assert outcomes[f"{function}: right"] == "returned"


@pytest.mark.parametrize("name", WRONG)
def test_is_refused(outcomes, name):
    message = WRONG[name][-1]
    assert outcomes[name].startswith("ValueError: "), outcomes[name]
    assert message in outcomes[name]
