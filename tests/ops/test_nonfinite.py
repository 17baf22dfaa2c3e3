"""NaN and infinities reach what reads them, and nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsekern.formats import Pattern
from sparsekern.ops import (
    conv2d,
    conv2d_grad_input,
    conv2d_grad_values,
    linear,
    linear_grad_input,
    linear_grad_values,
)

pytestmark = pytest.mark.usefixtures("isa")

GEOMETRIES = {
    "plain": {},
    "padding 1": {"padding": 1},
    "stride 2": {"stride": 2, "padding": 1},
    "dilation 2": {"dilation": 2, "padding": 2},
    "groups 2": {"groups": 2, "padding": 1},
}


def random_tensor(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reads(mask, positions):
    """Rows of a product with `mask` that read a column where `positions` is True."""
    return F.linear(positions.double(), mask.double()) > 0


@pytest.fixture(params=[1, 2, 40], ids="batch_{}".format)
def batch(request):
    return request.param


@pytest.fixture
def mask():
    return torch.rand(37, 50, generator=torch.Generator().manual_seed(0)) < 0.3


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_linear(mask, batch, dtype, bad):
    pattern = Pattern.from_mask(mask)
    x, values = random_tensor((batch, 50), dtype), random_tensor((pattern.nnz,), dtype)
    spoiled = torch.zeros(batch, 50, dtype=torch.bool)
    spoiled[batch // 2, [3, 20]] = True
    y = linear(x.masked_fill(spoiled, bad), values, pattern)
    clean = linear(x, values, pattern)
    reached = reads(mask, spoiled)
    assert reached.any()
    assert not reached.all()
    assert torch.equal(~torch.isfinite(y), reached)
    assert torch.equal(y[~reached], clean[~reached])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_linear_grad_input(mask, batch, dtype, bad):
    pattern = Pattern.from_mask(mask)
    grad_y, values = random_tensor((batch, 37), dtype), random_tensor((pattern.nnz,), dtype)
    spoiled = torch.zeros(batch, 37, dtype=torch.bool)
    spoiled[batch // 2, [3, 20]] = True
    grad_x = linear_grad_input(grad_y.masked_fill(spoiled, bad), values, pattern)
    reached = reads(mask.t(), spoiled)
    assert torch.equal(~torch.isfinite(grad_x), reached)
    assert torch.equal(grad_x[~reached], linear_grad_input(grad_y, values, pattern)[~reached])


@pytest.mark.parametrize("side", ["x", "grad_y"])
def test_linear_grad_values(mask, batch, dtype, side):
    """A column of x, or a row of the weight, is what one feature of one sample reaches."""
    pattern = Pattern.from_mask(mask)
    grad_y, x = random_tensor((batch, 37), dtype), random_tensor((batch, 50), dtype, seed=1)
    clean = linear_grad_values(grad_y, x, pattern, dense=True)
    reached = torch.zeros_like(mask)
    if side == "x":
        x[batch // 2, 7] = torch.nan
        reached[:, 7] = True
    else:
        grad_y[batch // 2, 7] = torch.nan
        reached[7] = True
    got = linear_grad_values(grad_y, x, pattern, dense=True)
    assert torch.equal(got.isnan(), reached & mask)
    assert torch.equal(got[~reached], clean[~reached])


def test_nan_among_the_weights_stays_in_its_row_and_column(mask, batch, dtype):
    pattern = Pattern.from_mask(mask)
    weight = random_tensor(mask.shape, dtype)
    row, column = mask.nonzero()[5].tolist()
    weight[row, column] = torch.nan
    y = linear(random_tensor((batch, 50), dtype), pattern.pack(weight), pattern)
    assert torch.equal(y.isnan().all(0), torch.arange(37) == row)
    assert torch.equal(y.isnan().any(0), torch.arange(37) == row)
    grad_x = linear_grad_input(random_tensor((batch, 37), dtype), pattern.pack(weight), pattern)
    assert torch.equal(grad_x.isnan().all(0), torch.arange(50) == column)
    assert torch.equal(grad_x.isnan().any(0), torch.arange(50) == column)


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def geometry(request):
    return request.param


@pytest.fixture
def convolution(geometry, dtype):
    """x, values, grad_y, and the mask of a weight with all its positions in use but a few."""
    groups = geometry.get("groups", 1)
    mask = torch.rand(6, 4 // groups, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    pattern = Pattern.from_mask(mask)
    x = random_tensor((3, 4, 9, 8), dtype)
    grad_y = random_tensor(F.conv2d(x.float(), mask.float(), **geometry).shape, dtype, seed=1)
    return x, random_tensor((pattern.nnz,), dtype), grad_y, mask, pattern


SPOTS = [(0, 0, 0), (1, 4, 3), (2, 0, 0), (3, 8, 7)]


@pytest.mark.parametrize("spot", SPOTS, ids=str)
def test_conv2d(convolution, geometry, spot):
    x, values, _, mask, pattern = convolution
    clean = conv2d(x, values, pattern, **geometry)
    x[1][spot] = torch.nan
    y = conv2d(x, values, pattern, **geometry)
    reached = F.conv2d(x.isnan().double(), mask.double(), **geometry) > 0
    assert torch.equal(y.isnan(), reached)
    assert torch.equal(y[~reached], clean[~reached])


@pytest.mark.parametrize("spot", [(0, 0, 0), (3, 1, 2), (5, -1, -1)], ids=str)
def test_conv2d_grad_input(convolution, geometry, spot):
    x, values, grad_y, mask, pattern = convolution
    clean = conv2d_grad_input(grad_y, values, pattern, x.shape, **geometry)
    grad_y[1][spot] = torch.nan
    grad_x = conv2d_grad_input(grad_y, values, pattern, x.shape, **geometry)
    reads_it = torch.nn.grad.conv2d_input(x.shape, mask.double(), grad_y.isnan().double(), **geometry) > 0
    assert torch.equal(grad_x.isnan(), reads_it)
    assert torch.equal(grad_x[~reads_it], clean[~reads_it])


@pytest.mark.parametrize("spot", [(0, 0, 0), (3, 1, 2), (5, -1, -1)], ids=str)
def test_conv2d_grad_values_of_a_bad_gradient(convolution, geometry, spot):
    x, _, grad_y, mask, pattern = convolution
    clean = conv2d_grad_values(grad_y, x, pattern, dense=True, **geometry)
    grad_y[1][spot] = torch.nan
    got = conv2d_grad_values(grad_y, x, pattern, dense=True, **geometry)
    rows = torch.arange(6) == spot[0]
    assert not got.isnan()[~rows].any()
    assert torch.equal(got[~rows], clean[~rows])
    assert got.isnan()[rows].any()


@pytest.mark.parametrize("spot", SPOTS, ids=str)
def test_conv2d_grad_values_of_a_bad_input(convolution, geometry, spot):
    """Other channels keep their gradients, and every weight that reads the pixel loses its own."""
    x, _, grad_y, mask, pattern = convolution
    clean = conv2d_grad_values(grad_y, x, pattern, dense=True, **geometry)
    x[1][spot] = torch.nan
    got = conv2d_grad_values(grad_y, x, pattern, dense=True, **geometry)
    ones = torch.ones_like(grad_y, dtype=torch.float64)
    counts = torch.nn.grad.conv2d_weight(x.isnan().double(), mask.shape, ones, **geometry)
    assert got.isnan()[(counts > 0) & mask].all()
    if geometry.get("groups", 1) == 1:  # enough weights read a pixel for taps to have planes of their own
        assert torch.equal(got.isnan(), (counts > 0) & mask)
    groups = geometry.get("groups", 1)
    other = torch.ones_like(mask)
    rows = slice(None) if groups == 1 else slice(spot[0] // 2 * 3, spot[0] // 2 * 3 + 3)
    other[rows, spot[0] % (4 // groups)] = False
    assert torch.equal(got[other], clean[other])
