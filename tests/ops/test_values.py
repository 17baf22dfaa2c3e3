"""pack, unpack and transfer: exact copies both ways, and each other's gradients."""

from __future__ import annotations

import pytest
import torch

from sparsekern.formats import Pattern
from sparsekern.ops import pack, transfer, unpack

pytestmark = pytest.mark.usefixtures("poisoned")

SHAPES = {"1x1": (1, 1), "65x130": (65, 130), "conv 12x5x3x2": (12, 5, 3, 2), "conv 70x9x1x1": (70, 9, 1, 1)}
MASKS = ["all", "none", "one element", "tenth", "half", "empty rows"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shape(request):
    return request.param


@pytest.fixture(params=[8, 64], ids="tile_{}".format)
def tile_size(request):
    return request.param


def random_dense(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix_order(tensor):
    """As the weight's matrix: columns in (kh, kw, cin) order."""
    return tensor if tensor.dim() == 2 else tensor.permute(0, 2, 3, 1).flatten(1)


@pytest.mark.parametrize("kind", MASKS)
def test_pack_and_unpack(make_mask, shape, kind, tile_size):
    mask = make_mask(kind, shape, tile_size)
    pattern = Pattern.from_mask(mask, tile_size=tile_size)
    dense = random_dense(shape)
    values = pack(dense, pattern)
    assert values.shape == (int(mask.sum()),)
    assert torch.equal(values, matrix_order(dense)[pattern.value_rows(), pattern.value_cols()])
    assert torch.equal(unpack(values, pattern), dense.masked_fill(~mask, 0))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("other", ["none", "half", "all"])
def test_transfer_keeps_common_positions_and_zeros_new_ones(make_mask, shape, kind, other, tile_size):
    before, after = make_mask(kind, shape, tile_size), make_mask(other, shape, tile_size, seed=1)
    source, target = (Pattern.from_mask(mask, tile_size=tile_size) for mask in (before, after))
    dense = random_dense(shape)
    moved = transfer(pack(dense, source), source, target)
    assert moved.shape == (target.nnz,)
    assert torch.equal(unpack(moved, target), dense.masked_fill(~(before & after), 0))


@pytest.mark.parametrize("kind", MASKS)
def test_gradients_are_the_same_copies_backwards(make_mask, shape, kind):
    mask, other = make_mask(kind, shape), make_mask("half", shape, seed=1)
    source, target = Pattern.from_mask(mask, tile_size=8), Pattern.from_mask(other, tile_size=8)
    dense, grad_dense = random_dense(shape).requires_grad_(), random_dense(shape, seed=2)
    values = pack(dense, source)
    (grad,) = torch.autograd.grad(values, dense, pack(grad_dense, source))
    assert torch.equal(grad, grad_dense.masked_fill(~mask, 0))
    values = values.detach().requires_grad_()
    (grad,) = torch.autograd.grad(unpack(values, source), values, grad_dense)
    assert torch.equal(grad, pack(grad_dense, source))
    (grad,) = torch.autograd.grad(transfer(values, source, target), values, pack(grad_dense, target))
    assert torch.equal(unpack(grad, source), grad_dense.masked_fill(~(mask & other), 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_floating_point_dtype_is_copied_bit_for_bit(make_mask, shape, dtype):
    """Every bit pattern, NaN payloads and signs of zero among them."""
    mask = make_mask("half", shape)
    pattern, other = Pattern.from_mask(mask), Pattern.from_mask(make_mask("half", shape, seed=1))
    generator = torch.Generator().manual_seed(0)
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    limits = torch.iinfo(integers)
    bits = torch.randint(limits.min, limits.max, shape, generator=generator, dtype=integers)
    values = pack(bits.view(dtype), pattern)
    assert values.dtype == dtype
    assert torch.equal(values.view(integers), pattern.pack(bits))
    assert torch.equal(unpack(values, pattern).view(integers), bits.masked_fill(~mask, 0))
    moved = transfer(values, pattern, other)
    assert torch.equal(moved.view(integers), pattern.transfer(pattern.pack(bits), other))


def test_inputs_that_are_not_contiguous():
    pattern = Pattern.from_mask(random_dense((30, 40)) > 0)
    other = Pattern.from_mask(random_dense((30, 40), seed=1) > 0)
    dense = random_dense((40, 30)).t()
    values = pack(dense.contiguous(), pattern)
    assert torch.equal(pack(dense, pattern), values)
    assert torch.equal(pack(dense[:, :1].expand(30, 40), pattern), pack(dense[:, :1].repeat(1, 40), pattern))
    strided = values.repeat_interleave(2)[1::2]
    assert torch.equal(unpack(strided, pattern), unpack(values, pattern))
    assert torch.equal(transfer(strided, pattern, other), transfer(values, pattern, other))
    channels_last = random_dense((4, 6, 3, 3)).contiguous(memory_format=torch.channels_last)
    conv = Pattern.from_mask(random_dense((4, 6, 3, 3), seed=1) > 0)
    assert torch.equal(pack(channels_last, conv), pack(channels_last.contiguous(), conv))


def test_a_lazily_negated_input():
    pattern = Pattern.from_mask(torch.ones(3, 4, dtype=torch.bool))
    negated = torch._neg_view(torch.ones(3, 4))
    assert torch.equal(pack(negated, pattern), torch.full((12,), -1.0))
    assert torch.equal(unpack(torch._neg_view(torch.ones(12)), pattern), torch.full((3, 4), -1.0))


def test_results_are_new_memory():
    """With every position active nothing would need to move; the result is a copy all the same."""
    pattern = Pattern.from_mask(torch.ones(8, 8, dtype=torch.bool), tile_size=8)
    dense = random_dense((8, 8))
    kept = dense.clone()
    values = pack(dense, pattern)
    unpack(values, pattern).zero_()
    transfer(values, pattern, pattern).zero_()
    values.zero_()
    assert torch.equal(dense, kept)
