"""Every op on a pattern that stores its grid of tiles complete, the empty ones too."""

from __future__ import annotations

import pytest
import torch

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

pytestmark = pytest.mark.usefixtures("isa", "poisoned")

MASKS = ["none", "one element", "hundredth", "empty tiles"]
TILE_SIZES = [8, 16, 32, 64]


TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12, torch.bfloat16: 5e-2}


def both(mask, tile_size):
    """Patterns of one mask, its last rows cleared so that their tiles are empty whatever the columns mean."""
    mask[-6:] = False
    usual, grid = (Pattern.from_mask(mask, tile_size=tile_size, complete=whole) for whole in (False, True))
    assert grid.num_tiles > usual.num_tiles
    return usual, grid


def random(*size, dtype=torch.float32, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(op, pattern, *inputs, **how):
    """An op of `inputs` and then the pattern, against the reference in float64."""
    got = op(*inputs, pattern, **how)
    right = op(*(tensor.double() for tensor in inputs), pattern, **how, backend="reference")
    tolerance = TOLERANCE[inputs[0].dtype]
    torch.testing.assert_close(got.double(), right, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("batch", [1, 5, 33, 150])
@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("kind", MASKS)
def test_linear(make_mask, kind, tile_size, batch, dtype):
    _, grid = both(make_mask(kind, (130, 197), tile_size), tile_size)
    values, x = random(grid.nnz, dtype=dtype), random(batch, 197, dtype=dtype)
    grad_y = random(batch, 130, dtype=dtype, seed=1)
    check(linear, grid, x, values)
    check(linear_grad_input, grid, grad_y, values)
    check(linear_grad_values, grid, grad_y, x)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("kind", MASKS)
def test_conv2d(make_mask, kind, tile_size, groups, dtype):
    _, grid = both(make_mask(kind, (70, 9, 3, 3), tile_size), tile_size)
    values, x = random(grid.nnz, dtype=dtype), random(2, 9 * groups, 11, 10, dtype=dtype)
    grad_y = random(2, 70, 11, 10, dtype=dtype, seed=1)

    def grad_input(grad_y, values, pattern, **how):
        return conv2d_grad_input(grad_y, values, pattern, x.shape, **how)

    for op, *inputs in ((conv2d, x, values), (grad_input, grad_y, values), (conv2d_grad_values, grad_y, x)):
        check(op, grid, *inputs, padding=1, groups=groups)


@pytest.mark.parametrize("shape", [(130, 197), (70, 9, 3, 3)], ids=str)
@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("kind", MASKS)
def test_copies_and_counts(make_mask, kind, tile_size, shape):
    mask = make_mask(kind, shape, tile_size)
    usual, grid = both(mask, tile_size)
    dense = random(*shape)
    values = pack(dense, grid)
    assert torch.equal(values, pack(dense, usual))
    assert torch.equal(unpack(values, grid), unpack(values, usual))
    assert torch.equal(grid.to_mask(), mask)
    other = Pattern.from_mask(make_mask("half", shape, seed=1), tile_size=tile_size)
    assert torch.equal(transfer(values, grid, other), transfer(values, usual, other))
    back = random(other.nnz)
    assert torch.equal(transfer(back, other, grid), transfer(back, other, usual))
    assert torch.equal(transfer(values, usual, grid), values)
    for count in ("fan_in", "fan_out", "value_rows", "value_cols"):
        assert torch.equal(getattr(grid, count)(), getattr(usual, count)())


@pytest.mark.parametrize("kind", MASKS)
def test_gradients_against_dense(make_mask, kind):
    """The usual pattern is no oracle of its own: once more against dense PyTorch."""
    _, grid = both(make_mask(kind, (70, 130)), 8)
    values, x = random(grid.nnz, dtype=torch.float64), random(7, 130, dtype=torch.float64)
    leaves = [values.requires_grad_(), x.requires_grad_()]
    y = linear(x, values, grid)
    right = torch.nn.functional.linear(x, unpack(values, grid))
    torch.testing.assert_close(y, right)
    grads, expected = (torch.autograd.grad(result.sin().sum(), leaves) for result in (y, right))
    torch.testing.assert_close(grads, expected)
