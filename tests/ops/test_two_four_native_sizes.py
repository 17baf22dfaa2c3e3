"""The extension checks every size and address of 2:4 packing: a mistake above it is never a crash."""

from __future__ import annotations

import pytest

# The arguments of a call that is right, by name: of an 8 x 12 weight in float32, 64 x 128 for CUTLASS.
CALLS = """
import functools, torch
from sparsekern import native

torch.set_num_threads(1)
room = {name: torch.zeros(8192) for name in ("weight", "values", "metadata", "values_t", "metadata_t")}
at = {name: tensor.data_ptr() for name, tensor in room.items()}
SHAPE = dict(rows=8, columns=12)
WEIGHT = dict(weight=at["weight"], weight_count=96)
PACKED = dict(values=at["values"], value_count=48, metadata=at["metadata"], metadata_count=16)
TRANSPOSED = dict(
    values_t=at["values_t"], value_t_count=48, metadata_t=at["metadata_t"], metadata_t_count=12
)
THREADS = dict(threads=1)
CUTLASS = dict(
    size=2, rows=64, columns=128, values=at["values"], value_count=4096, metadata=at["metadata"],
    metadata_count=1024, values_t=at["values_t"], value_t_count=4096, metadata_t=at["metadata_t"],
    metadata_t_count=1024,
)
RIGHT = {
    "pack": {"type": 2, **SHAPE, **WEIGHT, **PACKED, **THREADS},
    "pack_transposable": {"type": 2, **SHAPE, **WEIGHT, **PACKED, **TRANSPOSED, **THREADS},
    "gather": {
        "size": 4, **SHAPE, **WEIGHT, "metadata": at["metadata"], "metadata_count": 16,
        "values": at["values"], "value_count": 48, **THREADS,
    },
    "unpack": {"size": 4, **SHAPE, **PACKED, **WEIGHT, **THREADS},
    "check_metadata": {**SHAPE, "metadata": at["metadata"], "metadata_count": 16},
    "to_cutlass": {**CUTLASS, **THREADS},
    "from_cutlass": {**CUTLASS, **THREADS},
}
room["metadata"].view(torch.uint8).fill_(0x44)
room["metadata"].view(torch.uint8)[:16][1::2] = 0x04

def call(function, changes):
    arguments = dict(RIGHT[function])
    assert set(changes) <= set(arguments), changes
    arguments.update(changes)
    if function not in ("gather", "check_metadata"):
        for values, count, metadata, bytes in (
            ("values", "value_count", "metadata", "metadata_count"),
            ("values_t", "value_t_count", "metadata_t", "metadata_t_count"),
        ):
            if values in arguments:
                rest = [arguments.pop(name) for name in (count, metadata, bytes)]
                arguments[values] = (arguments[values], rest[0]), (rest[1], rest[2])
    getattr(native._C.two_four, function)(*arguments.values())
"""

FUNCTIONS = ["pack", "pack_transposable", "gather", "unpack", "check_metadata", "to_cutlass", "from_cutlass"]
# What a buffer is called in messages, its right count, and what is counted.
BUFFERS = {
    "pack": {"weight": ("weight", 96, "length"), "values": ("values", 48, "length"),
             "metadata": ("metadata", 16, "bytes")},
    "pack_transposable": {"weight": ("weight", 96, "length"), "values": ("values", 48, "length"),
                          "metadata": ("metadata", 16, "bytes"), "values_t": ("values_t", 48, "length"),
                          "metadata_t": ("metadata_t", 12, "bytes")},
    "gather": {"weight": ("dense", 96, "length"), "values": ("values", 48, "length"),
               "metadata": ("metadata", 16, "bytes")},
    "unpack": {"weight": ("dense", 96, "length"), "values": ("values", 48, "length"),
               "metadata": ("metadata", 16, "bytes")},
    "check_metadata": {"metadata": ("metadata", 16, "bytes")},
    "to_cutlass": {"values": ("values", 4096, "length"), "metadata": ("metadata", 1024, "bytes"),
                   "values_t": ("result values", 4096, "length"),
                   "metadata_t": ("result metadata", 1024, "bytes")},
}  # fmt: skip
BUFFERS["from_cutlass"] = BUFFERS["to_cutlass"]
COUNTS = {"weight": "weight_count", "values": "value_count", "metadata": "metadata_count",
          "values_t": "value_t_count", "metadata_t": "metadata_t_count"}  # fmt: skip


def wrong_calls():
    """Name of a case to its function, what is changed in the right call, and a part of the message."""
    for function in FUNCTIONS:
        for columns in (10, -4, 13):
            message = f"columns: expected a multiple of 4, got {columns}"
            yield f"{function}: {columns} columns", function, {"columns": columns}, message
        yield f"{function}: -4 rows", function, {"rows": -4}, "rows: expected a multiple of"
        huge = {"rows": 2**60, "columns": 2**60}
        yield f"{function}: huge", function, huge, "is beyond any memory"
        for buffer, (name, count, what) in BUFFERS[function].items():
            for wrong in (count - 1, count + 1, 0, -1):
                message = f"{name}: expected {what} {count}, got {wrong}"
                yield f"{function}: {wrong} of {buffer}", function, {COUNTS[buffer]: wrong}, message
            yield f"{function}: no {buffer}", function, {buffer: 0}, f"{name}: null data"
        if function != "check_metadata":
            for threads in (0, -3):
                message = f"threads: expected at least 1, got {threads}"
                yield f"{function}: {threads} threads", function, {"threads": threads}, message
    for function in ("pack", "pack_transposable"):
        for wrong in (-1, 5):
            yield f"{function}: type {wrong}", function, {"type": wrong}, "type: expected 0 (float16), 1"
    yield "tiles cut rows", "pack_transposable", {"rows": 6}, "rows: expected a multiple of 4, got 6"
    for function in ("gather", "unpack"):
        yield f"{function}: size 3", function, {"size": 3}, "element size must be 1, 2, 4 or 8 bytes, got 3"
    for function in ("to_cutlass", "from_cutlass"):
        yield f"{function}: size 4", function, {"size": 4}, "element size: expected 1 or 2 bytes, got 4"
        yield f"{function}: 48 rows", function, {"rows": 48}, "the nearest are 32 and 64"


WRONG = {name: rest for name, *rest in wrong_calls()}


@pytest.fixture(scope="module")
def outcomes(run_isolated):
    calls = {name: (function, changes) for name, (function, changes, _) in WRONG.items()}
    calls.update({f"{function}: right": (function, {}) for function in FUNCTIONS})
    return run_isolated(CALLS + f"CASES = {{n: functools.partial(call, *c) for n, c in {calls!r}.items()}}\n")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_call_that_the_others_change_is_right(outcomes, function):
    assert outcomes[f"{function}: right"] == "returned"


@pytest.mark.parametrize("name", WRONG)
def test_is_refused(outcomes, name):
    message = WRONG[name][-1]
    assert outcomes[name].startswith("ValueError: "), outcomes[name]
    assert message in outcomes[name]
