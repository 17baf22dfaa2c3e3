"""One update, bit for bit: whole numbers, so that no rounding decides, and hundreds of hard cases."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import SparseConv2d, SparseLinear

SCORES = {"RigL": torch.abs, "RigLInverted": lambda gradient: -gradient.abs()}
# Whole numbers within these bounds: few make many ties, one makes all equal, none leaves zeros.
LARGEST = {"many": 50, "few": 2, "signs": 1, "none": 0}
SPARSITIES = [0.0, 0.3, 0.9, 0.999]


def whole_numbers(shape, largest, generator, dtype):
    drawn = torch.randint(-largest, largest + 1, shape, generator=generator)
    return (torch.where(drawn == 0, 1, drawn.sign()) if largest == 1 else drawn).to(dtype)


def linear(sparsity, storage, dtype, generator):
    layer = SparseLinear(
        37, 29, bias=False, sparsity=sparsity, storage=storage, dtype=dtype, generator=generator
    )
    return layer, (5, 37)


def conv(sparsity, storage, dtype, generator):
    layer = SparseConv2d(
        6, 10, (3, 2), padding=1, groups=2, bias=False, sparsity=sparsity, storage=storage, dtype=dtype,
        generator=generator,
    )  # fmt: skip
    return layer, (2, 6, 4, 5)


LAYERS = {"linear": linear, "conv": conv}
CASES = list(itertools.product(LAYERS, LARGEST, SPARSITIES, [0.3, 1.0], [True, False]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("name", SCORES)
def test_updates_equal_the_oracle_bit_for_bit(name, storage, dtype, exchange):
    changed = 0
    for seed, (kind, numbers, sparsity, fraction, regrow) in enumerate(CASES):
        generator = torch.Generator().manual_seed(seed)
        layer, shape = LAYERS[kind](sparsity, storage, dtype, generator)
        with torch.no_grad():
            weight = whole_numbers(layer.pattern.shape, LARGEST[numbers], generator, dtype)
            layer.write_dense(weight)
        weight = layer.to_dense().detach()
        x = whole_numbers(shape, 2, generator, dtype)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
        model = nn.Sequential(layer)
        method = getattr(sk, name)(
            model, optimizer, update_every=1, drop_fraction=fraction, regrow_dropped=regrow
        )
        before = layer.mask
        for _ in range(2):  # of which the second selects while it goes backward
            optimizer.zero_grad()
            y = model(x)
            # Sums of 48 products stay below 256, up to which bfloat16 has all whole numbers.
            factor = whole_numbers(y.shape, min(LARGEST[numbers], 2), generator, dtype)
            (y * factor).sum().backward()
            dense, mask = dense_gradient(layer, x, factor), layer.mask
            optimizer.step()
            expected = exchange(weight, mask, SCORES[name](dense), fraction, regrow)
            assert torch.equal(layer.mask, expected), (kind, numbers, sparsity, fraction, regrow)
            assert layer.pattern.nnz == int(mask.sum())
            weight = torch.where(expected & mask, weight, 0)
            assert torch.equal(layer.to_dense(), weight)
            assert_no_momentum(layer, optimizer, expected & ~mask)
        changed += not torch.equal(before, layer.mask)
        method.detach()
    assert changed > len(CASES) // 2


def dense_gradient(layer, x, grad_y):
    dense = layer.to_dense_module()
    dense.weight.grad = None
    (dense(x) * grad_y).sum().backward()
    return dense.weight.grad


def assert_no_momentum(layer, optimizer, new):
    momentum = optimizer.state[layer.stored_weight]["momentum_buffer"]
    momentum = momentum if momentum.dim() > 1 else layer.pattern.unpack(momentum)
    assert (momentum[new | ~layer.mask] == 0).all()


@pytest.mark.parametrize("method", ["SET", "RigL", "RigLInverted", "SNFS"])
@pytest.mark.parametrize("active", [0, 1], ids=["no active weight", "one active weight"])
def test_a_layer_with_hardly_a_weight_is_left_alone(method, active):
    mask = torch.zeros(9, 11, dtype=torch.bool)
    mask.view(-1)[:active] = True
    few = SparseLinear(11, 9, mask=mask)
    model = nn.Sequential(few, SparseLinear(9, 9, sparsity=0.5))
    before = few.pattern
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = getattr(sk, method)(model, optimizer, update_every=1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 11)).sum().backward()
        optimizer.step()
    assert few.pattern == before
    assert method.updates == 3
    assert method.last_update.layers["0"].dropped == 0
    assert method.last_update.layers["1"].dropped == int(41 * 0.3)


# By the features and the output gradient, of which the weight's gradient is the product: it overflows at the
# inactive position (3, 2) alone in the last.
NOT_FINITE = {
    "infinite": ({2: float("inf")}, {}),
    "NaN": ({}, {1: float("nan")}),
    "inactive": ({2: 1e30}, {3: 1e30}),
}


@pytest.mark.parametrize("numbers", NOT_FINITE)
@pytest.mark.parametrize("method", ["RigL", "RigLInverted"])
def test_a_gradient_that_is_not_finite_is_refused(method, numbers):
    mask = torch.eye(6, dtype=torch.bool)

    def run(nonfinite):
        layer = SparseLinear(6, 6, bias=False, mask=mask)
        model = nn.Sequential(layer)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        driven = getattr(sk, method)(model, optimizer, update_every=1, drop_fraction=0.5, nonfinite=nonfinite)
        x, grad_y = torch.ones(1, 6), torch.ones(1, 6)
        for tensor, entries in zip((x, grad_y), NOT_FINITE[numbers]):
            for index, number in entries.items():
                tensor[0, index] = number

        def step():
            optimizer.zero_grad()
            layer(x).backward(grad_y)
            optimizer.step()

        return layer, driven, step

    layer, driven, step = run("raise")
    values = layer.values.detach().clone()
    with pytest.raises(FloatingPointError, match=r"gradient of layer '0' is not finite .* step 1"):
        step()
    assert torch.equal(layer.mask, mask)
    assert driven.updates == 0
    assert torch.equal(layer.values, values)

    layer, driven, step = run("skip")
    with pytest.warns(
        UserWarning, match=r"layer '0' is not finite at the update after step 1, which is left"
    ):
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()  # once is enough
    assert torch.equal(layer.mask, mask)
    assert (driven.updates, driven.steps, driven.next_update) == (0, 2, 3)


def test_block_patterns_stay_whole_and_follow_block_sums(exchange):
    torch.manual_seed(0)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        pattern = sk.Pattern.random((160, 224), 0.7, block_size=32, generator=generator)
        layer = SparseLinear(224, 160, bias=False, pattern=pattern)
        layer.write_dense(whole_numbers((160, 224), 3, generator, torch.float32))
        optimizer = torch.optim.SGD(layer.parameters(), 0.0)
        method = sk.RigL(nn.Sequential(layer), optimizer, update_every=1, drop_fraction=0.5)
        before, mask = layer.to_dense().detach(), layer.mask
        x = whole_numbers((3, 224), 2, generator, torch.float32)
        grad_y = whole_numbers((3, 160), 2, generator, torch.float32)
        layer(x).backward(grad_y)
        optimizer.step()

        def sums(t):
            return t.abs().unflatten(0, (-1, 32)).unflatten(2, (-1, 32)).sum((1, 3))

        blocks = exchange(sums(before), sums(mask.float()) > 0, sums(grad_y.T @ x), 0.5)
        assert torch.equal(layer.mask, blocks.repeat_interleave(32, 0).repeat_interleave(32, 1))
        assert torch.equal(layer.to_dense(), torch.where(layer.mask, before, 0))
        assert method.last_update.dropped == int(mask.sum()) // 32**2 // 2 * 32**2
        assert method.last_update.grown == int((layer.mask & ~mask).sum())
