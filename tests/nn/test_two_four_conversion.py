"""sparsify_(pattern="2:4"): which layers become 2:4, what they keep, and the way back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import SparseLinear, TwoFourConv2d, TwoFourLinear, densify_, sparsify_


class Net(nn.Module):
    """One layer for each thing that keeps a weight from being 2:4, and two without."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 14, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten())
        self.depthwise = nn.Conv2d(14, 14, 1, groups=14)
        self.neck = nn.Linear(14 * 3 * 3, 20)
        self.head = nn.Linear(20, 12)

    def forward(self, x):
        y = self.body[0](self.norm(self.stem(x)))
        return self.head(self.neck(self.body[2](self.body[1](self.depthwise(y)))))


@pytest.fixture
def net():
    def make_net(seed=0):
        torch.manual_seed(seed)
        return Net()

    return make_net


every_method = pytest.mark.parametrize("method", ["sr_ste", "ste", "fixed"])


@every_method
def test_what_fits_is_converted_and_the_rest_named(method, net, reasons):
    model, dense = net(), net()
    report = sparsify_(model, pattern="2:4", method=method)
    assert [type(model.body[0]), type(model.head)] == [TwoFourConv2d, TwoFourLinear]
    assert [layer.name for layer in report.converted] == ["body.0", "head"]
    assert reasons(report) == {
        "stem": "in_channels / groups must be a multiple of 4, got 3; the nearest: 4",
        "depthwise": "in_channels / groups must be a multiple of 4, got 1; the nearest: 4",
        "neck": "in_features must be a multiple of 4, got 126; the nearest: 124 and 128",
    }
    for name in ("body.0", "head"):
        layer, old = model.get_submodule(name), dense.get_submodule(name)
        assert layer.method == method
        assert torch.equal(layer.to_dense(), torch.where(layer.mask, old.weight, 0))
        with torch.no_grad():
            old.weight.mul_(layer.mask)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), dense(x))


def test_transposable_masks_need_outputs_that_fit(net, reasons):
    model = net()
    report = sparsify_(model, pattern="2:4", transposable=True)
    assert [layer.name for layer in report.converted] == ["head"]
    assert reasons(report)["body.0"] == "out_channels must be a multiple of 4, got 14; the nearest: 12 and 16"


def test_report(net):
    model = net()
    report = sparsify_(model, pattern="2:4", method="fixed")
    head = report.layers[-1]
    assert (head.name, head.shape, head.numel, head.nnz) == ("head", (12, 20), 240, 120)
    assert (head.sparsity, head.sparsity_asked, head.fan_in_min, head.fan_in_mean) == (0.5, 0.5, 10, 10.0)
    assert (head.value_bytes, head.pattern_bytes, head.dense_bytes) == (120 * 4, 12 * 3, 240 * 4)
    assert (report.sparsity, report.numel) == (0.5, 240 + 14 * 8 * 9)
    lines = str(report).splitlines()
    assert "left: in_features must be a multiple of 4, got 126; the nearest: 124 and 128" in lines[4]
    assert lines[-1].startswith("converted 2 of 5 layers: sparsity 0.5000, 624 of 1,248 weights")
    assert sparsify_(net(), pattern="2:4").layers[-1].value_bytes == 240 * 4


def test_options_reach_the_layers(net):
    model = net()
    sparsify_(model, pattern="2:4", transposable=True, refresh_every=7, decay=0.1, dense_below=64)
    head = model.head
    assert (head.method, head.transposable, head.refresh_every) == ("sr_ste", True, 7)
    assert (head.decay, head.dense_below) == (0.1, 64)


def test_parameters_flags_hooks_and_attributes_are_kept(net):
    model, calls = net().double().eval(), []
    model.head.weight.requires_grad_(False)
    model.head.user_note = "keep me"
    model.head.register_forward_hook(lambda *arguments: calls.append(1))
    bias = model.head.bias
    sparsify_(model, pattern="2:4")
    assert model.head.bias is bias
    assert model.head.weight.dtype == torch.float64
    assert not model.head.weight.requires_grad
    assert not model.head.training
    assert model.head.user_note == "keep me"
    model(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert calls == [1]


@every_method
def test_dense_initialization(method, net):
    models = [net(seed) for seed in (0, 0, 1)]
    biases = [model.head.bias.clone() for model in models]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        state = torch.get_rng_state()
        generator = torch.Generator().manual_seed(seed)
        sparsify_(model, pattern="2:4", method=method, init="dense", generator=generator)
        assert torch.equal(torch.get_rng_state(), state)
    weights = [model.head.to_dense() for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(models[0].head.mask, models[2].head.mask)
    assert all(torch.equal(model.head.bias, bias) for model, bias in zip(models, biases, strict=True))


@every_method
def test_ties_survive_and_go_back(method, tied, reasons):
    model = tied()
    report = sparsify_(model, pattern="2:4", method=method, exclude=["head"])
    assert model.a is model.b
    assert model.c.stored_weight is model.a.stored_weight
    assert torch.equal(model.c.mask, model.a.mask)
    assert report.numel == 16 * 16
    assert [layer.tied_to for layer in report.converted] == [None, "a"]
    tokens = torch.randint(30, (4,))
    expected = model(tokens)
    assert densify_(model) == ["a", "c"]
    assert model.c.weight is model.a.weight
    torch.testing.assert_close(model(tokens), expected)


def test_a_second_call_leaves_them_alone(net, reasons):
    model = net()
    sparsify_(model, pattern="2:4")
    layer, weight = model.head, model.head.weight
    report = sparsify_(model, pattern="2:4", method="fixed")
    assert model.head is layer
    assert layer.weight is weight
    assert not report.converted
    report = sparsify_(model, 0.5)
    assert model.head is layer
    assert reasons(report) == {"body.0": "already sparse", "head": "already sparse"}
    assert report.layers[0].name == "stem"
    assert type(model.neck) is SparseLinear


@every_method
def test_densify(method, net):
    model = net()
    sparsify_(model, pattern="2:4", method=method)
    x = torch.randn(2, 3, 8, 8)
    expected, masks = model(x), [model.body[0].mask, model.head.mask]
    assert densify_(model) == ["body.0", "head"]
    assert [type(model.body[0]), type(model.head)] == [nn.Conv2d, nn.Linear]
    assert not model.head.weight[~masks[1]].any()
    torch.testing.assert_close(model(x), expected)
    net().load_state_dict(model.state_dict())


@every_method
def test_a_model_on_meta_is_converted_without_memory(method, net):
    with torch.device("meta"):
        model = net()
    sparsify_(model, pattern="2:4", method=method)
    assert all(parameter.is_meta for parameter in model.parameters())
    source = net()
    sparsify_(source, pattern="2:4", method=method)
    model.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), source.eval()(x))


@every_method
def test_transformer_encoder_inference_uses_the_2_4_layers(method):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    assert model.use_nested_tensor
    sparsify_(model, pattern="2:4", method=method)
    x = torch.randn(2, 5, 16)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected = model.train()(x, src_key_padding_mask=mask).detach()
    with torch.no_grad():
        got = model.eval()(x, src_key_padding_mask=mask)
    torch.testing.assert_close(got[~mask], expected[~mask])
    densify_(model)
    assert model.use_nested_tensor


def test_symbolic_tracing_with_sparse_modules_as_leaves(net):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, sk.nn.SparseModule) or super().is_leaf_module(module, name)

    model = net().eval()
    sparsify_(model, pattern="2:4")
    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(traced(x), model(x))


MASKS = {"head": torch.ones(12, 20, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparsity": 0.5}, ValueError, "sparsity must be left out where pattern='2:4', .* got 0.5"),
        ({"masks": MASKS}, ValueError, "masks must be left out where pattern='2:4'"),
        ({"distribution": "erk"}, ValueError, "distribution must be left out where .*got 'erk'"),
        ({"block_size": 32}, ValueError, "block_size must be left out where .*got 32"),
        ({"storage": "masked"}, ValueError, "storage must be left out where .*got 'masked'"),
        ({"init": "per_neuron"}, ValueError, "init must be 'keep' or 'dense', got 'per_neuron'"),
        ({"method": "rigl"}, ValueError, "method must be .*'fixed', got 'rigl'"),
        ({"transposable": "yes"}, TypeError, "transposable must be True or False, got 'yes'"),
        ({"refresh_every": 0}, ValueError, "refresh_every must be at least 1, got 0"),
        ({"decay": -1}, ValueError, "decay must be .*at least 0, got -1"),
        ({"decay": 0.1, "method": "fixed"}, ValueError, "decay must be left out unless method='sr_ste'"),
        ({"dense_below": -1}, ValueError, "dense_below must be at least 0, got -1"),
        ({"exclude": ["heat"]}, ValueError, "exclude must .*'heat', which matches none; did you mean 'head'"),
        ({"exclude": ["*"]}, ValueError, "got Net with none"),
        ({"filter_fn": 3}, TypeError, "filter_fn must be callable, got 3"),
        ({"generator": 3}, TypeError, "generator must be .*got 3"),
        (
            {"pattern": "unstructured", "sparsity": 0.5, "method": "ste"},
            ValueError,
            "method must be left out",
        ),
        (
            {"pattern": "unstructured", "sparsity": 0.5, "transposable": True},
            ValueError,
            "transposable must be left out unless pattern='2:4', got True",
        ),
        ({"pattern": "block", "sparsity": 0.5, "refresh_every": 2}, ValueError, "refresh_every must be left"),
        ({"pattern": "block", "sparsity": 0.5, "decay": 0.0}, ValueError, "decay must be left out unless"),
        ({"pattern": "block", "sparsity": 0.5, "dense_below": 3}, ValueError, "dense_below must be left out"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_changes_nothing(arguments, error, message, net):
    model = net()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        sparsify_(model, **{"pattern": "2:4", **arguments})
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_weight_that_is_not_finite_changes_nothing(net):
    model = net()
    with torch.no_grad():
        model.head.weight[2, 3] = torch.nan
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match="expected finite values, got nan at row 2, column 3"):
        sparsify_(model, pattern="2:4", method="fixed")
    assert dict(model.named_modules()) == modules


def test_a_single_layer_is_refused():
    with pytest.raises(TypeError, match=r"a single Linear, .*TwoFourLinear.from_dense"):
        sparsify_(nn.Linear(8, 8), pattern="2:4")
    with pytest.raises(TypeError, match="a single TwoFourLinear, already sparse"):
        sparsify_(TwoFourLinear(8, 8), pattern="2:4")


def test_a_model_with_nothing_that_fits():
    with pytest.raises(
        ValueError, match=r"got Sequential with none \(0: in_features must be a multiple of 4"
    ):
        sparsify_(nn.Sequential(nn.Linear(6, 8)), pattern="2:4")


@pytest.mark.parametrize("name", ["decay", "packed", "values", "refresh_every", "mask", "groups"])
def test_an_attribute_under_a_name_of_2_4_layers_is_refused(name, net):
    model = net()
    setattr(model.head, name, "mine")
    with pytest.raises(ValueError, match=f"got '{name}' on layer 'head'; rename it, or exclude the layer"):
        sparsify_(model, pattern="2:4")


def test_methods_that_move_masks_say_why_they_move_none(net):
    model = net()
    sparsify_(model, pattern="2:4")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(
        ValueError, match="model must have a sparse layer to move, got Net with 2 that are 2:4"
    ):
        sk.RigL(model, optimizer)


def test_methods_pass_over_2_4_layers(net):
    model = net()
    sparsify_(model, pattern="2:4", exclude=["head"])
    sparsify_(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.RigL(model, optimizer, update_every=1)
    assert [layer.name for layer in method.layers] == ["stem", "depthwise", "neck", "head"]
    mask = model.body[0].mask
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    model.body[0].weight.grad.zero_()
    optimizer.step()
    assert method.updates == 1
    assert torch.equal(model.body[0].mask, mask)


@every_method
def test_masks_of_2_4_layers(method, net):
    model, other = net(), net()
    sparsify_(model, pattern="2:4", method=method)
    masks = sk.methods.masks_of(model)
    assert list(masks) == ["body.0", "head"]
    assert torch.equal(masks["head"].to_mask(), model.head.mask)
    sparsify_(other, masks=masks)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(other(x), model(x))
