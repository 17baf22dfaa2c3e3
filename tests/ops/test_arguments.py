"""What the ops refuse, and in which words."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from sparsekern.backends import BackendError
from sparsekern.formats import Pattern
from sparsekern.ops import (
    conv2d,
    conv2d_grad_input,
    conv2d_grad_values,
    linear,
    linear_grad_input,
    linear_grad_values,
    pack,
    transfer,
    unpack,
)

MATRIX = Pattern.random((4, 6), 0.5, generator=torch.Generator().manual_seed(0), tile_size=8)
OTHER = Pattern.random((4, 6), 0.5, generator=torch.Generator().manual_seed(1), tile_size=16)
KERNEL = Pattern.random((4, 3, 2, 2), 0.5, generator=torch.Generator().manual_seed(0))
X, IMAGES = torch.zeros(3, 6), torch.zeros(2, 3, 5, 5)
GRAD_Y, PIXELS = torch.zeros(3, 4), torch.zeros(2, 4, 4, 4)
VALUES, TAPS = torch.zeros(MATRIX.nnz), torch.zeros(KERNEL.nnz)
META = torch.zeros(3, 6, device="meta")

assert (MATRIX.nnz, KERNEL.nnz) == (12, 24)

LINEAR = {
    "x of another width": (
        lambda: linear(torch.zeros(3, 5), VALUES, MATRIX),
        ValueError,
        "x must have shape (..., 6), the last dimension being the weight's columns, got (3, 5)",
    ),
    "x of no dimensions": (
        lambda: linear(torch.zeros(()), VALUES, MATRIX),
        ValueError,
        "x must have shape (..., 6), the last dimension being the weight's columns, got ()",
    ),
    "x an array": (
        lambda: linear(np.zeros((3, 6)), VALUES, MATRIX),
        TypeError,
        "x must be a tensor, got ndarray",
    ),
    "x of integers": (
        lambda: linear(X.long(), VALUES, MATRIX),
        TypeError,
        "x must have a floating-point dtype, got torch.int64",
    ),
    "x complex": (
        lambda: linear(X.cfloat(), VALUES, MATRIX),
        TypeError,
        "x must have a floating-point dtype, got torch.complex64",
    ),
    "x on meta": (
        lambda: linear(META, VALUES, MATRIX),
        ValueError,
        "values and x must be on one device, got cpu and meta",
    ),
    "values of another dtype": (
        lambda: linear(X, VALUES.double(), MATRIX),
        TypeError,
        "values and x must have one dtype, got torch.float64 and torch.float32",
    ),
    "values too short": (
        lambda: linear(X, VALUES[:-1], MATRIX),
        ValueError,
        "values must have shape (12,), one for each active position, or the dense weight's (4, 6), got (11,)",
    ),
    "values transposed": (
        lambda: linear(X, torch.zeros(6, 4), MATRIX),
        ValueError,
        "or the dense weight's (4, 6), got (6, 4)",
    ),
    "values on meta": (
        lambda: linear(X, VALUES.to("meta"), MATRIX),
        ValueError,
        "values and x must be on one device, got meta and cpu",
    ),
    "values None": (lambda: linear(X, None, MATRIX), TypeError, "values must be a tensor, got NoneType"),
    "pattern a mask": (
        lambda: linear(X, VALUES, torch.ones(4, 6, dtype=torch.bool)),
        TypeError,
        "pattern must be a sparsekern.Pattern, got Tensor",
    ),
    "pattern of a convolution": (
        lambda: linear(X, TAPS, KERNEL),
        ValueError,
        "pattern must have 2 dimensions, got shape (4, 3, 2, 2)",
    ),
    "bias too long": (
        lambda: linear(X, VALUES, MATRIX, torch.zeros(6)),
        ValueError,
        "bias must have shape (4,), got (6,)",
    ),
    "bias a row": (
        lambda: linear(X, VALUES, MATRIX, torch.zeros(1, 4)),
        ValueError,
        "bias must have shape (4,), got (1, 4)",
    ),
    "bias of another dtype": (
        lambda: linear(X, VALUES, MATRIX, torch.zeros(4, dtype=torch.bfloat16)),
        TypeError,
        "bias and x must have one dtype, got torch.bfloat16 and torch.float32",
    ),
    "bias a number": (
        lambda: linear(X, VALUES, MATRIX, 1.0),
        TypeError,
        "bias must be a tensor, got float",
    ),
    "backend unknown": (
        lambda: linear(X, VALUES, MATRIX, backend="cudnn"),
        ValueError,
        "got 'cudnn'",
    ),
    "backend a number": (
        lambda: linear(X, VALUES, MATRIX, backend=1),
        TypeError,
        "backend must be a string or None, got int",
    ),
    "float16": (
        lambda: linear(X.half(), VALUES.half(), MATRIX),
        BackendError,
        "sparsekern.linear: no backend can run it on float16 tensors on cpu",
    ),
    "grad_input: grad_y of another width": (
        lambda: linear_grad_input(torch.zeros(3, 6), VALUES, MATRIX),
        ValueError,
        "grad_y must have shape (..., 4), the last dimension being the weight's rows, got (3, 6)",
    ),
    "grad_input: values of another dtype": (
        lambda: linear_grad_input(GRAD_Y, VALUES.double(), MATRIX),
        TypeError,
        "values and grad_y must have one dtype",
    ),
    "grad_values: another batch": (
        lambda: linear_grad_values(torch.zeros(2, 4), X, MATRIX),
        ValueError,
        "grad_y must match x but in its last dimension, got (2, 4)",
    ),
    "grad_values: another dtype": (
        lambda: linear_grad_values(GRAD_Y.double(), X, MATRIX),
        ValueError,
        "grad_y must match x but in its last dimension, got (3, 4) torch.float64",
    ),
}
CONV2D = {
    "x without a batch": (
        lambda: conv2d(IMAGES[0], TAPS, KERNEL),
        ValueError,
        "x must have shape (batch, 3, height, width) for 1 groups of 3 channels, got (3, 5, 5)",
    ),
    "x of other channels": (
        lambda: conv2d(torch.zeros(2, 4, 5, 5), TAPS, KERNEL),
        ValueError,
        "x must have shape (batch, 3, height, width)",
    ),
    "channels of one group": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, groups=2),
        ValueError,
        "x must have shape (batch, 6, height, width) for 2 groups of 3 channels, got (2, 3, 5, 5)",
    ),
    "pattern of a linear layer": (
        lambda: conv2d(IMAGES, VALUES, MATRIX),
        ValueError,
        "pattern must have 4 dimensions, got shape (4, 6)",
    ),
    "groups 3 of 4 outputs": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, groups=3),
        ValueError,
        "groups must be a positive divisor of the 4 output channels, got 3",
    ),
    "groups 0": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, groups=0),
        ValueError,
        "groups must be an integer of at least 1, got 0",
    ),
    "groups True": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, groups=True),
        ValueError,
        "groups must be an integer of at least 1, got True",
    ),
    "stride 0": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, stride=0),
        ValueError,
        "stride must be an integer of at least 1, or two of them, got 0",
    ),
    "stride of three": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, stride=(1, 1, 1)),
        ValueError,
        "stride must be an integer of at least 1, or two of them, got (1, 1, 1)",
    ),
    "stride 1.5": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, stride=1.5),
        (TypeError, ValueError),
        "stride must be an integer of at least 1, or two of them, got 1.5",
    ),
    "dilation None": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, dilation=None),
        (TypeError, ValueError),
        "dilation must be an integer of at least 1, or two of them, got None",
    ),
    "padding -1": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, padding=-1),
        ValueError,
        "padding must be an integer of at least 0, or two of them, got -1",
    ),
    "padding (0, -1)": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, padding=(0, -1)),
        ValueError,
        "padding must be an integer of at least 0, or two of them, got (0, -1)",
    ),
    "padding same": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, padding="same"),
        ValueError,
        "padding must be an integer of at least 0, or two of them, got 'same'",
    ),
    "kernel larger than x": (
        lambda: conv2d(torch.zeros(2, 3, 1, 5), TAPS, KERNEL),
        ValueError,
        "x must be at least as large as the kernel 2 x 2 with its padding and dilation, got 1 x 5",
    ),
    "dilated kernel larger than x": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, dilation=(1, 5)),
        ValueError,
        "x must be at least as large as the kernel 2 x 2 with its padding and dilation, got 5 x 5",
    ),
    "x of height 0": (
        lambda: conv2d(torch.zeros(2, 3, 0, 5), TAPS, KERNEL, padding=2),
        ValueError,
        "x must have a height and a width of at least 1, got 0 x 5",
    ),
    "x of width 0": (
        lambda: conv2d(torch.zeros(2, 3, 5, 0), TAPS, KERNEL, padding=2),
        ValueError,
        "x must have a height and a width of at least 1, got 5 x 0",
    ),
    "grad_input: x of height 0": (
        lambda: conv2d_grad_input(torch.zeros(2, 4, 3, 8), TAPS, KERNEL, (2, 3, 0, 5), padding=2),
        ValueError,
        "x must have a height and a width of at least 1, got 0 x 5",
    ),
    "bias of the inputs": (
        lambda: conv2d(IMAGES, TAPS, KERNEL, torch.zeros(3)),
        ValueError,
        "bias must have shape (4,), got (3,)",
    ),
    "values of another kernel": (
        lambda: conv2d(IMAGES, torch.zeros(4, 3, 3, 3), KERNEL),
        ValueError,
        "values must have shape (24,), one for each active position, or the dense weight's (4, 3, 2, 2)",
    ),
    "grad_input: another size": (
        lambda: conv2d_grad_input(PIXELS, TAPS, KERNEL, (2, 3, 6, 5)),
        ValueError,
        "grad_y must have the output's shape (2, 4, 5, 4), got (2, 4, 4, 4)",
    ),
    "grad_values: another batch": (
        lambda: conv2d_grad_values(PIXELS[:1], IMAGES, KERNEL),
        ValueError,
        "grad_y must have the output's shape (2, 4, 4, 4), got (1, 4, 4, 4)",
    ),
    "grad_values: another dtype": (
        lambda: conv2d_grad_values(PIXELS.double(), IMAGES, KERNEL),
        ValueError,
        "grad_y and x must have one dtype and device, got torch.float64 on cpu and torch.float32 on cpu",
    ),
}
COPIES = {
    "pack: transposed": (
        lambda: pack(torch.zeros(6, 4), MATRIX),
        ValueError,
        "dense must have shape (4, 6), got (6, 4)",
    ),
    "pack: integers": (
        lambda: pack(torch.zeros(4, 6, dtype=torch.int32), MATRIX),
        TypeError,
        "dense must have a floating-point dtype, got torch.int32",
    ),
    "unpack: too long": (
        lambda: unpack(torch.zeros(13), MATRIX),
        ValueError,
        "values must have shape (12,), got (13,)",
    ),
    "transfer: tile size": (
        lambda: transfer(VALUES, MATRIX, OTHER),
        ValueError,
        "target must have the source's shape (4, 6) and tile size 8, got (4, 6) and 16",
    ),
    "transfer: shape": (
        lambda: transfer(VALUES, MATRIX, KERNEL),
        ValueError,
        "pattern must have 2 dimensions, got shape (4, 3, 2, 2)",
    ),
    "transfer: too short": (
        lambda: transfer(VALUES[1:], MATRIX, MATRIX),
        ValueError,
        "values must have shape (12,), got (11,)",
    ),
    "transfer: target a mask": (
        lambda: transfer(VALUES, MATRIX, torch.ones(4, 6, dtype=torch.bool)),
        TypeError,
        "must be a sparsekern.Pattern, got Tensor",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), LINEAR.values(), ids=LINEAR.keys())
def test_linear(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("call", "error", "message"), CONV2D.values(), ids=CONV2D.keys())
def test_conv2d(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("call", "error", "message"), COPIES.values(), ids=COPIES.keys())
def test_pack_unpack_and_transfer(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_pairs_of_any_sequence():
    """A list, a tuple and a torch.Size say the same as one number."""
    y = conv2d(IMAGES, TAPS + 1, KERNEL, stride=2, padding=1)
    for pair in ([2, 2], (2, 2), torch.Size([2, 2])):
        assert torch.equal(conv2d(IMAGES, TAPS + 1, KERNEL, stride=pair, padding=[1, 1]), y)


DEFAULT_DEVICE = """
import functools, torch
from sparsekern import ops
from sparsekern.formats import Pattern

torch.set_num_threads(1)

def run(name, shape, *sizes):
    pattern = Pattern.from_mask(torch.ones(shape, dtype=torch.bool))
    inputs = [torch.ones(size).requires_grad_() for size in sizes]
    patterns = [pattern, pattern] if name == "transfer" else [pattern]
    with torch.device("meta"):
        y = getattr(ops, name)(*inputs, *patterns)
        y.backward(torch.ones(y.shape, device="cpu"))
    assert all(tensor.isfinite().all() for tensor in (y, *(tensor.grad for tensor in inputs)))

CASES = {
    "linear": functools.partial(run, "linear", (4, 6), (3, 6), (24,)),
    "linear, masked": functools.partial(run, "linear", (4, 6), (3, 6), (4, 6)),
    "conv2d": functools.partial(run, "conv2d", (4, 3, 2, 2), (2, 3, 5, 5), (48,)),
    "pack": functools.partial(run, "pack", (4, 6), (4, 6)),
    "unpack": functools.partial(run, "unpack", (4, 6), (24,)),
    "transfer": functools.partial(run, "transfer", (4, 6), (24,)),
}
"""


@pytest.fixture(scope="module")
def with_another_default_device(run_isolated):
    return run_isolated(DEFAULT_DEVICE)


@pytest.mark.parametrize("name", ["linear", "linear, masked", "conv2d", "pack", "unpack", "transfer"])
def test_results_are_where_the_inputs_are(with_another_default_device, name):
    """Else the kernels would be handed the address of memory of another device."""
    assert with_another_default_device[name] == "returned"
