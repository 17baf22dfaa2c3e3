"""TwoFourConv2d against F.conv2d on the masked dense weight, and its constructor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.nn import TwoFourConv2d

every_method = pytest.mark.parametrize("method", ["sr_ste", "ste", "fixed"])
GEOMETRIES = {
    "1 x 1": (12, 8, 1),
    "1 x 1, stride": (12, 8, 1, (2, 3)),
    "1 x 1, padding": (12, 8, 1, 1, 2),
    "1 x 1, groups": (24, 8, 1, 1, 0, 1, 2),
    "1 x 1, same": (12, 8, 1, 1, "same"),
    "3 x 2": (4, 8, (3, 2), 2, 1),
    "dilated": (8, 4, 3, (2, 1), (0, 2), 2),
    "groups": (16, 12, 3, 1, 1, 1, 4),
    "same": (4, 4, (2, 3), 1, "same", (2, 1)),
    "valid": (4, 4, 3, 1, "valid"),
}


def make_layer(geometry, method="sr_ste", transposable=False, seed=0, **keywords):
    keywords = {"dtype": torch.float64, **keywords}
    generator = torch.Generator().manual_seed(seed)
    layer = TwoFourConv2d(
        *GEOMETRIES[geometry], method=method, transposable=transposable, generator=generator, **keywords
    )
    if layer.bias is not None:
        nn.init.normal_(layer.bias, generator=generator)
    return layer


def draw(*shape, seed=1, **keywords):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, **{"dtype": torch.float64, **keywords})


def convolved(layer, x, weight, bias):
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@every_method
@pytest.mark.parametrize(
    ("batch", "transposable", "dense_below"),
    [((2,), False, 0), ((2,), True, 0), ((2,), False, 10_000), ((), False, 0), ((0,), False, 0)],
    ids=["batch", "transposable", "dense below", "no batch", "empty"],
)
@pytest.mark.parametrize(
    "last", [pytest.param(False, id="channels first"), pytest.param(True, id="channels last")]
)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_output_and_gradients_equal_dense(geometry, last, batch, transposable, dense_below, method, dense):
    decay = 0.3 if method == "sr_ste" else 0.0
    layer = make_layer(geometry, method, transposable, decay=decay, dense_below=dense_below)
    images = draw(*batch, layer.in_channels, 7, 6)
    if last:
        images = images.movedim(-3, -1).contiguous().movedim(-1, -3)
    x, x_dense = (images.clone().requires_grad_() for _ in range(2))
    mask, fixed = layer.mask, method == "fixed"
    if not fixed:
        assert torch.equal(mask, dense.masks[transposable](layer.weight))
    weight = (layer.to_dense() if fixed else layer.weight).detach().clone().requires_grad_()
    expected = convolved(
        layer, x_dense, weight * mask if fixed else dense.straight_through(weight, mask), layer.bias
    )
    y = layer(x)
    assert y.shape == expected.shape
    assert y.is_contiguous() or last
    torch.testing.assert_close(y, expected)
    factor = draw(*expected.shape, seed=2)
    added = 0 if fixed else dense.penalty(weight, mask, decay)
    got = torch.autograd.grad((y * factor).sum(), [x, layer.stored_weight, layer.bias])
    want = torch.autograd.grad((expected * factor).sum() + added, [x_dense, weight, layer.bias])
    torch.testing.assert_close(got[0], want[0])
    wanted = want[1].permute(0, 2, 3, 1)[mask.permute(0, 2, 3, 1)].view(got[1].shape) if fixed else want[1]
    torch.testing.assert_close(got[1], wanted)
    torch.testing.assert_close(got[2], want[2])


def test_groups_of_four_are_neighbouring_channels():
    layer = make_layer("3 x 2", "fixed", transposable=True)
    assert layer.values.shape == (8, 3 * 2 * 4 // 2)
    assert (layer.mask.unflatten(1, (-1, 4)).sum(2) == 2).all()
    assert (layer.mask.unflatten(0, (-1, 4)).sum(1) == 2).all()
    assert layer.packed.shape == (8, 24)
    weight = layer.to_dense()
    assert torch.equal(weight.permute(0, 2, 3, 1)[layer.mask.permute(0, 2, 3, 1)], layer.values.flatten())


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("geometry", ["1 x 1, stride", "3 x 2"])
def test_the_memory_format_of_the_result_is_that_of_the_input(geometry, last):
    layer = make_layer(geometry)
    memory_format = torch.channels_last if last else torch.contiguous_format
    y = layer(draw(2, layer.in_channels, 7, 6).to(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    ("geometry", "product"),
    [("1 x 1, stride", True), ("1 x 1, same", True), ("1 x 1, padding", False), ("1 x 1, groups", False)],
)
def test_what_is_a_product_of_pixels(geometry, product, monkeypatch):
    layer, calls = make_layer(geometry, "fixed"), []
    monkeypatch.setattr(F, "conv2d", lambda *arguments: calls.append(1))
    x = draw(2, layer.in_channels, 7, 6)
    layer(x.to(memory_format=torch.channels_last))
    assert calls == ([] if product else [1])
    layer(x)
    assert calls == [1] * (1 if product else 2)


def test_from_dense_and_back():
    module = nn.Conv2d(8, 12, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, bias=False)
    layer = TwoFourConv2d.from_dense(module, method="ste")
    assert torch.equal(layer.weight, module.weight)
    back = layer.to_dense_module()
    assert repr(back) == repr(module)
    assert torch.equal(back.weight, torch.where(layer.mask, module.weight, 0))


def test_repr():
    assert repr(TwoFourConv2d(8, 4, 3, padding=1, method="fixed")) == (
        "TwoFourConv2d(8, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=True, method=fixed)"
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"in_channels": 3},
            ValueError,
            "in_channels / groups must be a multiple of 4, got 3; the nearest: 4",
        ),
        (
            {"in_channels": 12, "groups": 2},
            ValueError,
            "in_channels / groups must be a multiple of 4, got 6; the nearest: 4 and 8",
        ),
        (
            {"out_channels": 6, "transposable": True},
            ValueError,
            "out_channels must be a multiple of 4, got 6; the nearest: 4 and 8",
        ),
        ({"groups": 3}, ValueError, "groups must be a divisor of in_channels = 8, got 3"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
        ({"padding_mode": "circular"}, ValueError, "padding_mode must be 'zeros', got 'circular'"),
        ({"method": "dense"}, ValueError, "method must be .*got 'dense'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_constructor_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        TwoFourConv2d(**{"in_channels": 8, "out_channels": 8, "kernel_size": 3, **arguments})


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 7, 5, 5), "8"),
        (torch.ones(2, 8), "2"),
        (torch.ones(2, 8, 5, 5, dtype=torch.float64), "(?i)float64|double"),
        ([1.0], "x must be a tensor, got list"),
    ],
    ids=["channels", "2-D", "dtype", "list"],
)
def test_bad_inputs(x, message, kernel_size):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        TwoFourConv2d(8, 4, kernel_size)(x)
