"""Linear layers of 2:4 weights in eight bits, and the rounding of whole models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import TwoFourLinear, TwoFourLinearInt8, quantize_int8_


def packed_weight(seed=0):
    return sk.ops.pack_two_four(torch.randn(12, 16, generator=torch.Generator().manual_seed(seed)))


def layer(seed=0, **options):
    return TwoFourLinearInt8(packed_weight(seed), torch.linspace(-1, 1, 12), **options)


def network(seed=0, method="sr_ste"):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4))
    sk.sparsify_(model, pattern="2:4", method=method, exclude=["4"])
    return model.eval()


X = torch.randn(9, 16, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("x_scale", [None, 0.03], ids=["dynamic", "static"])
def test_layer_is_the_op(x_scale):
    int8 = layer(x_scale=x_scale)
    step = None if x_scale is None else torch.tensor(x_scale)
    quantized, scale = sk.ops.quantize_two_four(packed_weight())
    expected = sk.ops.two_four_linear_int8(X, quantized, scale, int8.bias, x_scale=step)
    assert torch.equal(int8(X), expected)
    exact = torch.nn.functional.linear(X, int8.to_dense(), int8.bias)
    assert (int8(X) - exact).abs().max() < 0.1
    assert list(int8.parameters()) == []


def test_bytes_and_mask():
    int8 = layer()
    assert torch.equal(int8.mask, packed_weight().to_mask())
    stored = sum(int8._buffers[name].nbytes for name in ("values", "metadata"))
    assert 4 * 12 * 16 / stored == 6.4
    assert "activations=dynamic" in repr(int8)


def test_scales_stay_float32_wherever_the_layer_goes():
    int8 = layer(x_scale=0.03)
    scale = int8.scale.clone()
    moved = copy.deepcopy(int8).to(torch.bfloat16)
    assert moved.scale.dtype == moved.x_scale.dtype == torch.float32
    assert torch.equal(moved.scale, scale)
    assert moved.bias.dtype == torch.bfloat16
    assert moved(X.bfloat16()).dtype == torch.bfloat16
    assert int8.to("meta").scale.is_meta


def test_state_dict():
    one, other = layer(0, x_scale=0.03), layer(1, x_scale=0.5)
    assert not torch.equal(one(X), other(X))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(X), other(X))


def test_a_state_dict_that_is_not_two_four_is_refused():
    state = layer().state_dict()
    int8 = layer(1)
    before = int8(X)
    state["metadata"] = torch.zeros_like(state["metadata"])
    with pytest.raises(RuntimeError, match="metadata must have two ascending columns for each group of 4"):
        int8.load_state_dict(state)
    state = {**layer().state_dict(), "values": layer().values.float()}
    with pytest.raises(RuntimeError, match=r"values must be int8, got a torch\.float32"):
        int8.load_state_dict(state)
    assert torch.equal(int8(X), before)


def test_compiled():
    int8 = layer()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(int8, fullgraph=True)(X), int8(X))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer(x_scale=0), "x_scale must be a positive finite float32, got 0"),
        (lambda: layer(x_scale=float("inf")), "x_scale must be a positive finite float32, got inf"),
        (
            lambda: TwoFourLinearInt8(packed_weight(), torch.ones(3)),
            r"bias must be a tensor of shape \(12,\)",
        ),
        (lambda: TwoFourLinearInt8(torch.ones(4, 4)), r"packed must be a sparsekern\.TwoFour"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


class TestQuantize:
    @pytest.mark.parametrize("method", ["sr_ste", "fixed"])
    @pytest.mark.parametrize("activations", ["dynamic", "static"])
    def test_near_the_float_network(self, method, activations):
        model = network(method=method)
        exact, masks = model(X).detach(), [model[0].mask, model[2].mask]
        calibrate = (lambda: model(X)) if activations == "static" else None
        report = quantize_int8_(model, activations=activations, calibrate=calibrate)
        assert [type(module) for module in model[::2]] == [TwoFourLinearInt8, TwoFourLinearInt8, nn.Linear]
        assert [entry.name for entry in report.converted] == ["0", "2"]
        assert report.nnz == (16 * 32 + 32 * 8) // 2
        assert all(map(torch.equal, [model[0].mask, model[2].mask], masks))
        assert (model(X) - exact).norm() / exact.norm() < 0.05

    def test_static_scales_are_those_of_the_largest_input(self):
        model = network()
        hidden = model[1](model[0](X)).detach()
        quantize_int8_(model, activations="static", calibrate=lambda: [model(X[:4]), model(X[4:])])
        assert float(model[0].x_scale) == pytest.approx(float(X.abs().max()) / 127)
        assert float(model[2].x_scale) == pytest.approx(float(hidden.abs().max()) / 127)

    def test_excluded_layers_stay(self):
        model = network()
        quantize_int8_(model, exclude=["2"])
        assert [type(module) for module in model[::2]] == [TwoFourLinearInt8, TwoFourLinear, nn.Linear]

    def test_exports(self, tmp_path):
        model, other = network(0), network(1)
        for one in (model, other):
            quantize_int8_(one)
        sk.export.save_safetensors(model, tmp_path / "model.safetensors")
        sk.export.load_safetensors(other, tmp_path / "model.safetensors")
        assert torch.equal(model(X), other(X))
        dense = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4))
        dense.load_state_dict(sk.export.dense_state_dict(model))
        exact = dense(X).detach()
        assert (model(X) - exact).norm() / exact.norm() < 0.05

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"activations": "int4"}, "activations must be 'dynamic' or 'static', got 'int4'"),
            ({"activations": "static"}, "calibrate must be a function for activations='static'"),
            ({"calibrate": len}, "and left out for 'dynamic'"),
            ({"activations": "static", "calibrate": 3}, "calibrate must be a function"),
            (
                {"activations": "static", "calibrate": lambda: None},
                r"got 0\.0 as the largest .* for layer '0'",
            ),
            ({"exclude": ["nothing"]}, "exclude must be names or glob patterns of modules"),
            ({"exclude": ["*"]}, "model must have a TwoFourLinear to quantize"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        model = network()
        kinds = list(map(type, model))
        with pytest.raises((TypeError, ValueError), match=message):
            quantize_int8_(model, **arguments)
        assert list(map(type, model)) == kinds

    def test_weights_without_an_int8_form_change_nothing(self):
        model = network()
        with torch.no_grad():
            model[2].weight[1] = 1e-42
        with pytest.raises(ValueError, match="got '2': packed must have rows whose largest magnitude"):
            quantize_int8_(model)
        assert isinstance(model[0], TwoFourLinear)
