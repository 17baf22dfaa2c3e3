"""TwoFourLinear against F.linear on the masked dense weight, and its constructor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern import ops
from sparsekern.nn import TwoFourConv2d, TwoFourLinear

every_method = pytest.mark.parametrize("method", ["sr_ste", "ste", "fixed"])
both_masks = pytest.mark.parametrize("transposable", [False, True], ids=["rows", "transposable"])


def make_layer(method="sr_ste", transposable=False, seed=0, **keywords):
    """12 outputs, 20 inputs: neither is a multiple of 8."""
    keywords = {"dtype": torch.float64, **keywords}
    generator = torch.Generator().manual_seed(seed)
    layer = TwoFourLinear(20, 12, method=method, transposable=transposable, generator=generator, **keywords)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, generator=generator)
    return layer


def draw(*shape, seed=1, **keywords):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, **{"dtype": torch.float64, **keywords})


@every_method
@both_masks
@pytest.mark.parametrize("dense_below", [0, 1000], ids=["packed", "dense below"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "batch", [(5,), (), (2, 3), (0,), (2, 0, 3)], ids=["2-D", "1-D", "3-D", "empty", "empty middle"]
)
def test_output_and_gradients_equal_dense(batch, bias, dense_below, transposable, method, dense):
    decay = 0.3 if method == "sr_ste" else 0.0
    layer = make_layer(method, transposable, bias=bias, dense_below=dense_below, decay=decay)
    x, x_dense = (draw(*batch, 20).requires_grad_() for _ in range(2))
    mask = layer.mask
    stored = layer.to_dense() if method == "fixed" else layer.weight
    weight = stored.detach().clone().requires_grad_()
    expected, added = dense.linear(x_dense, weight, mask, layer.bias, method=method, decay=decay)
    y = layer(x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected)
    factor = draw(*expected.shape, seed=2)
    bias = [layer.bias] if bias else []
    got = torch.autograd.grad((y * factor).sum(), [x, layer.stored_weight, *bias])
    want = torch.autograd.grad((expected * factor).sum() + added, [x_dense, weight, *bias])
    torch.testing.assert_close(got[0], want[0])
    wanted = want[1][mask].view(12, 10) if method == "fixed" else want[1]
    torch.testing.assert_close(got[1], wanted)
    torch.testing.assert_close(got[2:], want[2:])


@both_masks
@pytest.mark.parametrize("method", ["sr_ste", "ste"])
def test_the_mask_is_that_of_the_largest_magnitudes(method, transposable, dense):
    layer = make_layer(method, transposable)
    assert torch.equal(layer.mask, dense.masks[transposable](layer.weight))
    with torch.no_grad():
        layer.weight.copy_(draw(12, 20, seed=3))
    assert torch.equal(layer.mask, dense.masks[transposable](layer.weight))


@every_method
def test_packed_is_the_weight(method):
    layer = make_layer(method, transposable=True)
    packed = layer.packed.check()
    assert packed.shape == (12, 20)
    assert torch.equal(packed.to_mask(), layer.mask)
    assert torch.equal(ops.unpack_two_four(packed), layer.to_dense())
    assert packed.values.requires_grad == (method == "fixed")


@every_method
def test_to_dense_is_differentiable(method):
    layer, grad = make_layer(method), draw(12, 20)
    layer.to_dense().backward(grad)
    mask = layer.mask
    expected = grad[mask].view(12, 10) if method == "fixed" else grad * mask
    torch.testing.assert_close(layer.stored_weight.grad, expected)


@every_method
def test_non_contiguous_input(method):
    layer, x = make_layer(method), draw(20, 5).T
    torch.testing.assert_close(layer(x), F.linear(x, layer.to_dense(), layer.bias))


def test_frozen_weights_and_inputs():
    layer, x = make_layer().requires_grad_(False), draw(5, 20).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.to_dense().sum(0).expand(5, 20))
    layer = make_layer()
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None


def test_the_decay_may_be_set_at_any_time():
    layer, x = make_layer("sr_ste", decay=0.0), draw(5, 20)
    gradients = []
    for layer.decay in (0.0, 0.5):
        layer.zero_grad()
        layer(x).sum().backward()
        gradients.append(layer.weight.grad)
    expected = gradients[0] + 0.5 * (layer.weight.detach() * ~layer.mask)
    torch.testing.assert_close(gradients[1], expected)


def test_the_decay_is_added_in_every_backward_pass():
    layer, x = make_layer("sr_ste", decay=0.5), draw(5, 20)
    for _ in range(2):
        (0 * layer(x)).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * 0.5 * layer.weight.detach() * ~layer.mask)


@pytest.mark.parametrize("dense_below", [0, 100])
def test_second_derivatives_of_a_fixed_mask(dense_below):
    layer, x = make_layer("fixed", dense_below=dense_below), draw(3, 20).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def output(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = (x, *(parameter.detach().requires_grad_() for parameter in layer.parameters()))
    assert torch.autograd.gradcheck(output, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(output, inputs, fast_mode=True)


def test_dense_below_decides_by_rows(monkeypatch):
    layer, calls = make_layer("fixed", dense_below=6), []
    monkeypatch.setattr(ops, "two_four_linear", lambda x, *arguments: calls.append(x.shape))
    layer(draw(5, 20))
    assert not calls
    layer(draw(2, 3, 20))
    assert calls == [(2, 3, 20)]


def test_generator_decides_everything():
    def made(method, seed):
        return make_layer(method, seed=seed).to_dense()

    before = torch.get_rng_state()
    for method in ("sr_ste", "fixed"):
        assert torch.equal(made(method, 1), made(method, 1))
        assert not torch.equal(made(method, 1), made(method, 2))
    assert torch.equal(torch.get_rng_state(), before)


@every_method
def test_initial_weights_are_glorot(method):
    generator = torch.Generator().manual_seed(0)
    layer = TwoFourLinear(400, 800, method=method, generator=generator)
    weight = layer.stored_weight.detach()
    assert weight.var().item() == pytest.approx(2 / 1200, rel=0.02)
    assert weight.abs().max() <= math.sqrt(3 * 2 / 1200)
    assert not layer.bias.any()


@both_masks
def test_a_fixed_mask_is_drawn_uniformly(transposable):
    generator = torch.Generator().manual_seed(0)
    layer = TwoFourLinear(400, 800, method="fixed", transposable=transposable, generator=generator)
    groups = layer.mask.unflatten(1, (-1, 4))
    assert (groups.sum(-1) == 2).all()
    # 80,000 draws of one of six pairs.
    pairs = (groups * torch.tensor([1, 2, 4, 8])).sum(-1).flatten().bincount(minlength=16)
    kept = pairs[[3, 5, 6, 9, 10, 12]]
    assert kept.sum() == 80_000
    torch.testing.assert_close(kept.double() / 80_000, torch.full((6,), 1 / 6).double(), rtol=0, atol=0.01)
    if transposable:
        assert (layer.mask.T.unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_reset_parameters_keeps_a_fixed_mask():
    layer = make_layer("fixed")
    mask, values = layer.mask, layer.values.detach().clone()
    layer.reset_parameters(torch.Generator().manual_seed(5))
    assert torch.equal(layer.mask, mask)
    assert (layer.values != values).all()
    assert not layer.bias.any()


def test_memory_of_a_fixed_mask():
    layer = TwoFourLinear(4096, 64, bias=False, method="fixed")
    assert [tuple(parameter.shape) for parameter in layer.parameters()] == [(64, 2048)]
    assert layer.mask_bytes == 64 * 512


def test_repr():
    layer = TwoFourLinear(100, 32, bias=False, transposable=True, refresh_every=10, dense_below=64)
    assert repr(layer) == (
        "TwoFourLinear(in_features=100, out_features=32, bias=False, method=sr_ste, transposable=True, "
        "refresh_every=10, decay=0.0002, dense_below=64)"
    )
    assert repr(TwoFourLinear(8, 8, method="fixed")) == (
        "TwoFourLinear(in_features=8, out_features=8, bias=True, method=fixed)"
    )


def test_numpy_numbers_are_taken():
    layer = TwoFourLinear(np.int64(8), np.int32(4), refresh_every=np.int64(2), decay=np.float32(0.5))
    assert (type(layer.in_features), type(layer.refresh_every), type(layer.decay)) == (int, int, float)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"in_features": 10},
            ValueError,
            "in_features must be a multiple of 4, got 10; the nearest: 8 and 12",
        ),
        ({"in_features": 3}, ValueError, "in_features must be a multiple of 4, got 3; the nearest: 4"),
        ({"in_features": 0}, ValueError, "in_features must be at least 1, got 0"),
        ({"out_features": 4.0}, TypeError, "out_features must be an integer, got 4.0"),
        (
            {"out_features": 6, "transposable": True},
            ValueError,
            "out_features must be a multiple of 4, got 6; the nearest: 4 and 8",
        ),
        ({"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
        ({"method": "magnitude"}, ValueError, "method must be 'sr_ste' or 'ste' or 'fixed', got 'magnitude'"),
        ({"method": None}, TypeError, "method must be .*got None"),
        ({"transposable": 1}, TypeError, "transposable must be True or False, got 1"),
        ({"refresh_every": 0}, ValueError, "refresh_every must be at least 1, got 0"),
        ({"refresh_every": 1.5}, TypeError, "refresh_every must be an integer, got 1.5"),
        (
            {"refresh_every": 2, "method": "fixed"},
            ValueError,
            "refresh_every must be left out for method='fixed', .*got 2",
        ),
        ({"decay": -1.0}, ValueError, "decay must be a finite number of at least 0, got -1.0"),
        ({"decay": math.inf}, ValueError, "decay must be .*got inf"),
        ({"decay": math.nan}, ValueError, "decay must be .*got nan"),
        ({"decay": "2e-4"}, TypeError, "decay must be .*got '2e-4'"),
        ({"decay": True}, TypeError, "decay must be .*got True"),
        (
            {"decay": 0.1, "method": "ste"},
            ValueError,
            "decay must be left out unless method='sr_ste', got 0.1 and 'ste'",
        ),
        ({"dense_below": -1}, ValueError, "dense_below must be at least 0, got -1"),
        ({"dense_below": None}, TypeError, "dense_below must be an integer, got None"),
        ({"init": "per_neuron"}, ValueError, "init must be 'dense', got 'per_neuron'"),
        ({"dtype": torch.int8}, TypeError, "dtype must be a floating-point torch.dtype, got torch.int8"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, got 3"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_constructor_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        TwoFourLinear(**{"in_features": 8, "out_features": 8, **arguments})


@every_method
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 7), "8"),
        (torch.ones(()), "8"),
        (torch.ones(2, 8, dtype=torch.float64), "float64"),
        (torch.ones(2, 8, dtype=torch.int64), "int64"),
        (torch.ones(2, 8, device="meta"), "meta"),
        ([1.0] * 8, "x must be a tensor, got list"),
    ],
    ids=["last dimension", "0-D", "dtype", "integer", "device", "list"],
)
def test_bad_inputs(x, message, method):
    with pytest.raises((TypeError, ValueError), match=message):
        TwoFourLinear(8, 4, method=method)(x)


@pytest.mark.parametrize(("x", "message"), [([1.0], "got list"), (torch.ones(2, 8).int(), "got torch.int32")])
def test_bad_inputs_of_the_dense_product(x, message):
    with pytest.raises(TypeError, match=f"x must .*{message}"):
        TwoFourLinear(8, 4, dense_below=9)(x)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(value):
    layer = make_layer()
    with torch.no_grad():
        layer.weight[3, 17] = value
    with pytest.raises(ValueError, match=f"weight: expected finite values, got {value} at row 3, column 17"):
        layer(draw(2, 20))
    assert layer.state_dict()["weight"][3, 17].isfinite().logical_not()


@every_method
def test_from_dense_and_back(method, dense):
    module = nn.Linear(20, 12, dtype=torch.float64).eval()
    module.weight.requires_grad_(False)
    weight = module.weight.clone()
    layer = TwoFourLinear.from_dense(module, method=method, transposable=True, dense_below=3)
    assert (layer.method, layer.transposable, layer.dense_below) == (method, True, 3)
    assert not layer.stored_weight.requires_grad
    assert layer.stored_weight.dtype == torch.float64
    assert not layer.training
    masked = torch.where(dense.masks[True](weight), weight, 0)
    assert torch.equal(layer.to_dense(), masked)
    back = layer.to_dense_module()
    assert type(back) is nn.Linear
    assert not back.weight.requires_grad
    assert not back.training
    assert torch.equal(back.weight, masked)
    torch.testing.assert_close(layer(draw(3, 20)), back(draw(3, 20)))
    with torch.no_grad():
        layer.bias.add_(1)
        back.bias.add_(2)
        layer.stored_weight.zero_()
    assert torch.equal(module.weight, weight)
    assert not torch.equal(layer.bias, module.bias)
    assert not torch.equal(layer.bias, back.bias)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TwoFourLinear.from_dense(nn.Conv2d(4, 4, 1)), TypeError, "module must be a torch.nn.Linear"),
        (lambda: TwoFourLinear.from_dense(make_layer()), TypeError, "module must .*already sparse"),
        (lambda: TwoFourLinear.from_dense(nn.LazyLinear(4)), ValueError, "module must .*lazy"),
        (
            lambda: TwoFourLinear.from_dense(nn.Linear(6, 4)),
            ValueError,
            "in_features must be a multiple of 4",
        ),
        (
            lambda: TwoFourLinear.from_dense(nn.Linear(4, 4), method="rigl"),
            ValueError,
            "method must .*'rigl'",
        ),
        (
            lambda: TwoFourConv2d.from_dense(nn.Conv2d(4, 4, 1, padding_mode="reflect")),
            ValueError,
            "padding_mode must be 'zeros'",
        ),
    ],
    ids=["other type", "sparse", "lazy", "size", "method", "padding mode"],
)
def test_from_dense_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
