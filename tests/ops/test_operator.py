"""The registered ops, which anyone can call below the checks of the public functions."""

from __future__ import annotations

import re

import pytest
import torch

from sparsekern.formats import Pattern

MATRIX = Pattern.from_mask(torch.ones(4, 6, dtype=torch.bool))
KERNEL = Pattern.from_mask(torch.ones(4, 3, 2, 2, dtype=torch.bool))
X, IMAGES = torch.zeros(3, 6), torch.zeros(2, 3, 5, 5)
VALUES, TAPS = torch.zeros(MATRIX.nnz), torch.zeros(KERNEL.nnz)

WRONG = {
    "linear: another shape": (
        lambda: torch.ops.sparsekern.linear(X, VALUES, None, MATRIX.data, (3, 6), ""),
        ValueError,
        "y: its strides reach element 11 of 9",
    ),
    "linear: x of another width": (
        lambda: torch.ops.sparsekern.linear(X[:, :5].clone(), VALUES, None, MATRIX.data, (4, 6), ""),
        ValueError,
        "x: its strides reach element 17 of 15",
    ),
    "linear: values of another dtype": (
        lambda: torch.ops.sparsekern.linear(X.double(), VALUES, None, MATRIX.data, (4, 6), ""),
        TypeError,
        "values must have dtype torch.float64, got torch.float32",
    ),
    "linear: pattern of another dtype": (
        lambda: torch.ops.sparsekern.linear(X, VALUES, None, MATRIX.data.long(), (4, 6), ""),
        TypeError,
        "pattern must have dtype torch.int32, got torch.int64",
    ),
    "conv2d: another shape": (
        lambda: torch.ops.sparsekern.conv2d(
            IMAGES, TAPS, None, KERNEL.data, (3, 3, 2, 2), (1, 1, 0, 0, 1, 1, 1), ""
        ),
        ValueError,
        "y: expected elements 128, got 96",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_refused_before_memory_is_touched(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
