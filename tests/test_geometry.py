"""The size of a convolution's output."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from sparsekern.geometry import conv2d_geometry, conv2d_output_size

CASES = list(itertools.product([1, (2, 3)], [0, (2, 1)], [1, (1, 2)], [1, 2]))


def test_seven_integers():
    assert conv2d_geometry(1, (2, 3), [4, 5], 6) == (1, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), CASES, ids=str)
@pytest.mark.parametrize("size", [(3, 4, 9, 8), (0, 4, 5, 7)], ids=str)
def test_output_size(size, stride, padding, dilation, groups):
    shape = (6, 4 // groups, 3, 2)
    expected = F.conv2d(torch.zeros(size), torch.zeros(shape), None, stride, padding, dilation, groups).shape
    geometry = conv2d_geometry(stride, padding, dilation, groups)
    assert conv2d_output_size(size, shape, geometry) == tuple(expected)


@pytest.mark.parametrize(
    "value", [0, -1, 1.0, True, None, "1", (1,), (1, 0), (1, 1.0), (True, 1), (1, 1, 1)], ids=repr
)
def test_a_stride_out_of_range(value):
    with pytest.raises(ValueError, match=r"^stride must be an integer of at least 1, or two of them, got "):
        conv2d_geometry(value, 0, 1, 1)
