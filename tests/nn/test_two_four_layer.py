"""What 2:4 layers keep through copies, moves and ties, and what they refuse."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sparsekern.nn import SparseLinear, TwoFourConv2d, TwoFourLinear

every_method = pytest.mark.parametrize("method", ["sr_ste", "ste", "fixed"])
both_kinds = pytest.mark.parametrize("kind", ["linear", "conv"])


def make_layer(method="sr_ste", kind="linear", seed=0, **keywords):
    generator = torch.Generator().manual_seed(seed)
    layer = TwoFourLinear if kind == "linear" else TwoFourConv2d
    sizes = (20, 12) if kind == "linear" else (8, 12, 3)
    layer = layer(*sizes, method=method, generator=generator, **keywords)
    nn.init.normal_(layer.bias, generator=generator)
    return layer


def draw(layer, seed=1, dtype=torch.float32):
    shape = (4, 20) if isinstance(layer, TwoFourLinear) else (2, 8, 5, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@every_method
@both_kinds
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(way, kind, method):
    layer = make_layer(method, kind)
    x = draw(layer)
    with torch.no_grad():
        expected = layer.eval()(x)
    if way == "deepcopy":
        copied = copy.deepcopy(layer)
    elif way == "pickle":
        copied = pickle.loads(pickle.dumps(layer))
    else:
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    mask = layer.mask
    with torch.no_grad():
        assert torch.equal(copied(x), expected)
        copied.stored_weight.normal_()
        copied.draw_mask()
        assert not torch.equal(copied(x), expected)
        assert torch.equal(layer(x), expected)
    assert torch.equal(layer.mask, mask)


@every_method
def test_exponential_moving_average(method):
    model = nn.Sequential(make_layer(method), nn.ReLU(), nn.Linear(12, 2))
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True
    )
    first = model[0].stored_weight.detach().clone()
    average.update_parameters(model)
    with torch.no_grad():
        model[0].stored_weight.add_(2)
    average.update_parameters(model)
    torch.testing.assert_close(average.module[0].stored_weight.detach(), first + 1)
    average.module[0].packed.check()
    average.load_state_dict(copy.deepcopy(average.state_dict()))


@every_method
def test_moves_change_the_weight_only(method):
    layer = make_layer(method)
    mask = layer.mask
    for cast, dtype in ((layer.double, torch.float64), (layer.bfloat16, torch.bfloat16)):
        assert cast() is layer
        assert layer.stored_weight.dtype == layer.bias.dtype == layer.packed.values.dtype == dtype
        if method == "fixed":
            assert torch.equal(layer.mask, mask)
        assert layer(draw(layer, dtype=dtype)).dtype == dtype


def test_a_fixed_mask_survives_the_meta_device():
    layer = make_layer("fixed")
    mask = layer.mask
    layer.to("meta")
    assert layer.values.is_meta
    assert torch.equal(layer.mask, mask)
    layer.to_empty(device="cpu")
    assert torch.equal(layer.mask, mask)
    layer.reset_parameters()
    assert layer(draw(layer)).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_method
def test_the_mask_follows_to_the_gpu(method):
    layer = make_layer(method)
    mask, x = layer.mask, draw(layer)
    expected = layer(x)
    layer.cuda()
    assert layer.packed.device.type == "cuda"
    assert torch.equal(layer.mask.cpu(), mask)
    torch.testing.assert_close(layer(x.cuda()).cpu(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("method", "name"), [("sr_ste", "values"), ("ste", "values"), ("fixed", "weight")])
def test_the_other_form_has_another_name(method, name):
    layer = make_layer(method)
    message = f"a TwoFourLinear with method='{method}' has no '{name}': .*Parameter '{layer.weight_name}'"
    assert not hasattr(layer, name)
    with pytest.raises(AttributeError, match=message):
        getattr(layer, name)
    with pytest.raises(AttributeError, match=message):
        setattr(layer, name, nn.Parameter(torch.ones(12, 20)))
    assert [name for name, _ in layer.named_parameters()] == [layer.weight_name, "bias"]


@every_method
def test_optimizers_see_one_parameter_of_the_form(method):
    layer = make_layer(method)
    optimizer = torch.optim.AdamW(layer.parameters(), 1e-2)
    layer(draw(layer)).square().sum().backward()
    optimizer.step()
    shape = (12, 10) if method == "fixed" else (12, 20)
    states = [v for v in optimizer.state[layer.stored_weight].values() if v.dim()]
    assert [tuple(state.shape) for state in states] == [shape, shape]


@every_method
def test_write_dense(method):
    layer = make_layer(method)
    mask, dense = layer.mask, torch.randn(12, 20, dtype=torch.float64)
    layer.write_dense(dense)
    if method == "fixed":
        assert torch.equal(layer.mask, mask)
        assert torch.equal(layer.to_dense(), torch.where(mask, dense, 0).float())
    else:
        assert torch.equal(layer.weight, dense.float())


@every_method
@both_kinds
def test_tied_layers_share_weight_and_mask(kind, method):
    a, b = make_layer(method, kind), make_layer(method, kind, seed=1)
    b.tie_weight(a)
    assert b.stored_weight is a.stored_weight
    assert torch.equal(a.to_dense(), b.to_dense())
    a.load_state_dict(make_layer(method, kind, seed=2).state_dict())
    assert torch.equal(a.to_dense(), b.to_dense())
    first, second = copy.deepcopy(nn.ModuleList([a, b]))
    assert first.stored_weight is second.stored_weight
    first.draw_mask()
    assert torch.equal(first.mask, second.mask)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (lambda: make_layer("ste"), ValueError, "other must have method, .* shape .*'sr_ste'.*got .*'ste'"),
        (lambda: make_layer(refresh_every=2), ValueError, "other must have .*refresh_every"),
        (lambda: TwoFourLinear(12, 20), ValueError, r"other must have .*12, 20\), got .*20, 12\)"),
        (lambda: SparseLinear(20, 12, sparsity=0.5), TypeError, "other must be a TwoFourLinear, got Spars"),
    ],
    ids=["method", "refresh_every", "shape", "class"],
)
def test_what_cannot_be_tied(other, error, message):
    layer, other = make_layer(), other()
    weight = layer.weight
    with pytest.raises(error, match=message):
        layer.tie_weight(other)
    assert layer.weight is weight


@every_method
def test_functional_call_and_gradients_of_functions(method):
    layer = make_layer(method).double()
    x = draw(layer, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    gradients = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad)


@every_method
@both_kinds
@pytest.mark.parametrize("transposable", [False, True], ids=["rows", "transposable"])
def test_shapes_on_the_meta_device(transposable, kind, method):
    layer = make_layer(method, kind, transposable=transposable).to("meta")
    x = draw(layer).to("meta").requires_grad_()
    y = layer(x)
    assert y.is_meta
    assert y.shape == ((4, 12) if kind == "linear" else (2, 12, 3, 3))
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert layer.stored_weight.grad.shape == layer.stored_weight.shape
