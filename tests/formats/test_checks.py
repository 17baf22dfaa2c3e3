"""Checks of common arguments, and the choice of the tile size."""

import numpy as np
import pytest

from sparsekern.formats.checks import active_count, check_shape, check_sparsity
from sparsekern.formats.layout import default_tile_size


@pytest.mark.parametrize("value", [0, 0.0, 0.9, 1 - 2**-53, np.float32(0.5), np.float64(0.25)])
def test_a_sparsity_is_returned_as_a_float(value):
    assert type(check_sparsity(value)) is float
    assert check_sparsity(value) == value


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (1, ValueError),
        (1.5, ValueError),
        (-0.1, ValueError),
        (90, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (True, TypeError),
        (False, TypeError),
        (np.bool_(True), TypeError),
        ("0.9", TypeError),
        (None, TypeError),
        (1j, TypeError),
        ([0.9], TypeError),
    ],
    ids=str,
)
def test_what_is_no_sparsity(value, error):
    with pytest.raises(error, match=r"^final_sparsity must be .*in \[0, 1\).* got ") as caught:
        check_sparsity(value, "final_sparsity")
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("sparsity", "numel", "expected"),
    [(0.9, 1000, 100), (0.0, 7, 7), (0.999, 10, 1), (0.95, 1_000_000, 50_000)],
)
def test_active_count(sparsity, numel, expected):
    assert active_count(sparsity, numel) == expected


def test_a_shape_is_returned_as_a_tuple_of_ints():
    assert check_shape([np.int64(3), 4]) == (3, 4)
    assert check_shape((3, 4, 5, 5)) == (3, 4, 5, 5)


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((3,), ValueError),
        ((3, 4, 5), ValueError),
        ((0, 4), ValueError),
        ((3, -4), ValueError),
        ((2**31, 1), ValueError),
        ((1, 2**16, 2**8, 2**8), ValueError),
        (12, TypeError),
        ("34", TypeError),
        ((3, 4.0), TypeError),
        ((True, 4), TypeError),
    ],
    ids=str,
)
def test_what_is_no_shape(shape, error):
    with pytest.raises(error, match=r"^weight must "):
        check_shape(shape, "weight")


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        pytest.param((6, 25), 8, id="lenet_conv1"),
        pytest.param((16, 150), 16, id="lenet_conv2"),
        pytest.param((120, 400), 64, id="lenet_fc1"),
        pytest.param((10, 84), 8, id="lenet_fc3"),
        pytest.param((300, 784), 64, id="mlp_300"),
        pytest.param((64, 64), 64, id="one_tile"),
        pytest.param((64, 27), 32, id="first_convolution"),
        pytest.param((1000, 2048), 64, id="resnet_fc"),
        pytest.param((1, 1), 8, id="single"),
    ],
)
def test_the_default_tile_size_pads_by_at_most_a_quarter_or_the_least(matrix, expected):
    assert default_tile_size(*matrix) == expected
