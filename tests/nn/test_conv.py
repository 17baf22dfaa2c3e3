"""SparseConv2d against F.conv2d on the dense weight, and its constructor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sparsekern.nn import SparseConv2d

GEOMETRIES = {
    "plain": {"kernel_size": 3},
    "1x1": {"kernel_size": 1},
    "strided and padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "pairs": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, even kernel": {"kernel_size": (4, 2), "padding": "same"},
    "same, dilated": {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": 3, "groups": 4},
}


def make_pair(storage, in_channels=4, out_channels=8, sparsity=0.6, **geometry):
    """A sparse layer and the nn.Conv2d with the same dense weight."""
    torch.manual_seed(0)
    sparse = SparseConv2d(
        in_channels, out_channels, sparsity=sparsity, storage=storage, dtype=torch.float64, **geometry
    )
    dense = nn.Conv2d(in_channels, out_channels, dtype=torch.float64, **geometry)
    with torch.no_grad():
        dense.weight.copy_(sparse.to_dense())
        sparse.bias.copy_(dense.bias)
        if storage == "masked":
            sparse.weight[~sparse.mask] = 7.0  # must take no part
    return sparse, dense


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # the dense reference's
@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("batch", [(3,), (0,), ()], ids=["batch", "empty batch", "unbatched"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_output_and_gradients_equal_dense(geometry, batch, storage):
    sparse, dense = make_pair(storage, **geometry)
    x = torch.randn(*batch, 4, 11, 9, dtype=torch.float64, requires_grad=True)
    x_dense = x.detach().clone().requires_grad_()
    y, expected = sparse(x), dense(x_dense)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, sparse.stored_weight, sparse.bias], grad)
    want = torch.autograd.grad(expected, [x_dense, dense.weight, dense.bias], grad)
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[2], want[2])
    if storage == "compact":
        torch.testing.assert_close(got[1], sparse.pattern.pack(want[1]))
    else:
        torch.testing.assert_close(got[1], want[1] * sparse.mask)
        assert not got[1][~sparse.mask].any()


def test_attributes_are_those_of_conv2d():
    sparse, dense = make_pair("compact", kernel_size=3, stride=2, padding=(1, 0), groups=2)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(sparse, name) == getattr(dense, name)


def test_repr():
    layer = SparseConv2d(4, 8, 3, padding="same", groups=2, sparsity=0.5)
    assert repr(layer) == (
        "SparseConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=same, groups=2, bias=True, "
        "sparsity=0.5000, nnz=72, storage=compact)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding_mode": "reflect"}, "padding_mode must be 'zeros', got 'reflect'"),
        ({"padding": "full"}, "padding must .*'same' or 'valid', got 'full'"),
        ({"padding": "same", "stride": 2}, r"padding must .*stride is \(2, 2\), got 'same'"),
        ({"padding": -1}, "padding must .*at least 0, got -1"),
        ({"kernel_size": 0}, "kernel_size must .*at least 1, got 0"),
        ({"stride": 0}, "stride must .*at least 1, got 0"),
        ({"dilation": (1, 0)}, "dilation must .*at least 1"),
        ({"groups": 3}, "groups must be a divisor of in_channels = 4, got 3"),
        ({"groups": 4, "out_channels": 6}, "groups must be a divisor of out_channels = 6, got 4"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"mask": torch.ones(8, 4, 3, 3, dtype=torch.bool)}, "exactly one .* got sparsity and mask"),
    ],
    ids=[
        "padding mode",
        "padding word",
        "same with stride",
        "negative padding",
        "empty kernel",
        "zero stride",
        "zero dilation",
        "groups and inputs",
        "groups and outputs",
        "no inputs",
        "two patterns",
    ],
)
def test_bad_constructor_arguments(arguments, message):
    valid = {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "sparsity": 0.5}
    with pytest.raises(ValueError, match=message):
        SparseConv2d(**{**valid, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": (3, 3, 3)}, "kernel_size must be an integer or a pair of integers"),
        ({"kernel_size": 3.0}, "kernel_size must be an integer or a pair of integers, got 3.0"),
        ({"stride": (1, True)}, "stride must be an integer or a pair of integers"),
        ({"padding": None}, "padding must be an integer or a pair of integers, got None"),
        ({"padding_mode": 0}, "padding_mode must be 'zeros', got 0"),
        ({"groups": 2.0}, "groups must be an integer, got 2.0"),
        ({"bias": "no"}, "bias must be True or False, got 'no'"),
    ],
    ids=["3-D kernel", "float kernel", "bool stride", "no padding", "padding mode", "float groups", "bias"],
)
def test_constructor_arguments_of_another_type(arguments, message):
    valid = {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "sparsity": 0.5}
    with pytest.raises(TypeError, match=message):
        SparseConv2d(**{**valid, **arguments})


def test_numpy_integers_are_taken_as_ints():
    three = np.int64(3)
    layer = SparseConv2d(
        np.int32(4), 2 * three, (three, 1), stride=three, padding=three, groups=np.int64(2), sparsity=0.5
    )
    plain = SparseConv2d(4, 6, (3, 1), stride=3, padding=3, groups=2, sparsity=0.5)
    assert repr(layer) == repr(plain)
    for name in ("in_channels", "out_channels", "groups"):
        assert type(getattr(layer, name)) is int
    for name in ("kernel_size", "stride", "padding", "dilation"):
        assert [type(size) for size in getattr(layer, name)] == [int, int]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 3, 9, 9), "4"),
        (torch.ones(9, 9), "4"),
        (torch.ones(2, 4, 2, 9), "kernel 3 x 3"),
        (torch.ones(2, 4, 9, 9, dtype=torch.float64), "float64"),
        (torch.ones(2, 4, 9, 9, device="meta"), "meta"),
    ],
    ids=["channels", "2-D", "smaller than the kernel", "dtype", "device"],
)
def test_bad_inputs(x, message):
    layer = SparseConv2d(4, 8, 3, sparsity=0.5)
    with pytest.raises((TypeError, ValueError), match=message):
        layer(x)
