"""What once was taken, or ended the process: each call has an error of its own."""

import numpy as np
import pytest

from sparsekern import _C
from tests.csrc.memory import Buffer
from tests.csrc.patterns import pack_mask

PATTERN = pack_mask(np.arange(600).reshape(20, 30) % 2 == 0, 8)
KERNEL = pack_mask(np.ones((4, 2, 3, 3), bool), 8)
WORDS, KERNEL_WORDS = Buffer(PATTERN.words, True), Buffer(KERNEL.words, True)
ROOM = Buffer(np.zeros(4096), True)
AT, NULL = ROOM.address, 0
FAR = 2**63 - 1


def conv2d(*sizes):
    return _C.conv2d(0, *KERNEL_WORDS, _C.Conv2dShape(*sizes), AT, KERNEL.nnz, AT, 0, 0, 0, AT, 0, 1)


def passes():
    return _C.grow_candidates(0, *WORDS, AT, 60, 3, 20, 1, AT, 90, 30, 1, 1)


def damaged_start():
    """A tile that begins 2^63 values before the next one."""
    data = Buffer(PATTERN.words, True)
    starts = data.array[16:].view(np.int64)
    starts[1] = np.iinfo(np.int64).min
    _C.pattern.validate(*data, 1)


def int8(dtype, m, rows, count):
    weight = AT, 2 * rows, AT, rows, rows, 4
    return _C.two_four.linear_int8(dtype, *weight, AT, rows, AT, count, m, 0, 1, 0, 0, 0, AT, m * rows, 1)


def update(kind):
    result = Buffer(np.zeros(_C.pattern.mask_builder(AT, 600, (20, 30), 8, True, 1).words, np.int32), True)
    vectors = (2, AT, PATTERN.nnz), (kind, AT, 600)
    _C.pattern.update_topology(*WORDS, *vectors, 1, False, *result, 1)


CALLS = {
    "to_mask: null": (lambda: _C.pattern.to_mask(*WORDS, NULL, 600, 1), "mask: null data"),
    "pack: null": (lambda: _C.pattern.pack(*WORDS, NULL, 600, AT, 300, 4, 1), "dense: null data"),
    "unpack: null": (lambda: _C.pattern.unpack(*WORDS, AT, 300, NULL, 600, 4, 1), "dense: null data"),
    "fan_in: null": (lambda: _C.pattern.fan_in(*WORDS, NULL, 20, 1), "counts: null data"),
    "value_rows: null": (lambda: _C.pattern.value_rows(*WORDS, NULL, 300, 1), "out: null data"),
    "mask: null": (lambda: _C.pattern.mask_builder(NULL, 600, (20, 30), 8, False, 1), "mask: null data"),
    "checksum: null": (lambda: _C.pattern.checksum(NULL, 100), "data: null data"),
    "transfer_all: null": (
        lambda: _C.pattern.transfer_all(*WORDS, *WORDS, [(AT, 300, NULL, 300, 4)] * 2, 1),
        "to_values: null data",
    ),
    "pack: misaligned": (
        lambda: _C.pattern.pack(*WORDS, AT + 1, 600, AT, 300, 4, 1),
        "dense: expected data aligned to its elements of 4 bytes",
    ),
    "linear: misaligned": (
        lambda: _C.linear(1, *WORDS, AT + 4, 300, AT, 90, 3, 30, 1, 0, 0, AT, 60, 1),
        "values: expected data aligned to its elements of 8 bytes",
    ),
    "threads": (
        lambda: _C.pattern.nnz(*WORDS) and _C.pattern.validate(*WORDS, 10**6),
        "at most 4096, got 1000000",
    ),
    "shape of text": (
        lambda: _C.pattern.random_builder(("20", "30"), 1, 1, 0, 8, 1),
        "incompatible function arguments",
    ),
    "conv2d: images": (
        lambda: conv2d(2**62, 4, 4, 4, 1, 1, 0, 0, 1, 1),
        "x: expected at most 2\\^48 elements",
    ),
    "conv2d: padding": (
        lambda: conv2d(1, 1, 4, 4, 1, 1, FAR, 0, 1, 1),
        "padding: expected at most 2147483647",
    ),
    "conv2d: dilation": (
        lambda: conv2d(1, 1, 4, 4, 1, 1, 0, 0, FAR, 1),
        "dilation: expected at most 2147483647",
    ),
    "digit": (
        lambda: passes().count(0, 2**31 - 1, 8, AT, 256),
        "digit: expected 1 to 16 bits of a key of 31",
    ),
    "prefix": (lambda: passes().count(-1, 23, 8, AT, 256), "prefix: expected 0 to 0, got -1"),
    "least": (lambda: passes().emit(-(2**63), 20, AT, 0, AT, 0), "least: expected 0 to 2147483647"),
    "tile_start": (damaged_start, "tile_start does not match the bits of tile 0"),
    "scores of no type": (lambda: update(4), "dtype: expected float16, bfloat16, float32 or float64"),
    "2:4: columns": (
        lambda: _C.two_four.pack(2, 0, 2**63 - 4, 0, 0, ((0, 0), (0, 0)), 1),
        "beyond any memory",
    ),
    "int8: samples": (lambda: int8(0, 2**60, 0, 4), "x: expected at most 2\\^48 elements"),
    "int8: float64": (lambda: int8(1, 0, 3, 0), "dtype: expected float32 or bfloat16"),
}


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS.keys())
def test_a_call_that_cannot_be_right_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
    assert ROOM.is_intact()


@pytest.mark.parametrize("rows", [20, 31])
def test_a_builder_refuses_no_memory(rows):
    builder = _C.pattern.random_builder((rows, 30), 300, 1, 0, 8, 1)
    with pytest.raises(ValueError, match="data: null data"):
        builder.fill(NULL, builder.words, 1)
