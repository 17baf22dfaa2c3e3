"""The size of a convolution's output."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsekern.geometry import conv2d_geometry, conv2d_output_size

CASES = list(itertools.product([1, (2, 3)], [0, (2, 1)], [1, (1, 2)], [1, 2]))


def test_seven_integers():
    assert conv2d_geometry(1, (2, 3), [4, 5], 6) == (1, 1, 2, 3, 4, 5, 6)


def test_numpy_integers_become_plain_ones():
    geometry = conv2d_geometry(np.int64(2), (np.int32(1), 0), 1, np.int64(3))
    assert geometry == (2, 2, 1, 0, 1, 1, 3)
    assert {type(value) for value in geometry} == {int}


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "1", (1, 1)], ids=repr)
def test_groups_out_of_range(value):
    with pytest.raises(ValueError, match=r"^groups must be an integer of at least 1, got "):
        conv2d_geometry(1, 0, 1, value)


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
