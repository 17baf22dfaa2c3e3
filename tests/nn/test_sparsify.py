"""sparsify_ and densify_: the swapped model computes what it should and keeps what it had."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sparsekern.nn import SparseConv2d, SparseLinear, densify_, sparsify_
from sparsekern.nn.base import SparseLayer

both_storages = pytest.mark.parametrize("storage", ["compact", "masked"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@both_storages
@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_keep_equals_the_masked_dense_model(distribution, storage, masked_dense_twin, net, sparse_names):
    model, dense = net(), net()
    report = sparsify_(model, 0.8, distribution=distribution, storage=storage, generator=generator())
    assert sparse_names(model) == ["stem", "body.0", "head"]
    assert type(model.stem) is type(model.body[0]) is SparseConv2d
    assert type(model.head) is SparseLinear
    assert all(model.get_submodule(name).storage == storage for name in sparse_names(model))
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(model(x), masked_dense_twin(dense, model)(x))
    total = sum(layer.pattern.numel for layer in (model.stem, model.body[0], model.head))
    nnz = sum(layer.pattern.nnz for layer in (model.stem, model.body[0], model.head))
    assert nnz == report.nnz == round(0.2 * total)
    assert report.numel == total
    assert not report.left


def test_distributions_differ(net):
    shares = {}
    for distribution in ("uniform", "er", "erk"):
        model = net()
        sparsify_(model, 0.8, distribution=distribution)
        shares[distribution] = [model.stem.pattern.sparsity, model.head.pattern.sparsity]
    assert shares["uniform"] == pytest.approx([0.8, 0.8], abs=0.005)
    assert len({tuple(share) for share in shares.values()}) == 3


def test_block_pattern():
    model = nn.Sequential(nn.Linear(128, 256))
    sparsify_(model, 0.75, pattern="block", block_size=32)
    blocks = model[0].mask.view(8, 32, 4, 32).permute(0, 2, 1, 3).reshape(32, -1)
    assert blocks.all(1).sum() == 8
    assert (blocks.all(1) | ~blocks.any(1)).all()


@both_storages
@pytest.mark.parametrize("init", ["dense", "per_layer", "per_neuron"])
def test_other_initializations_replace_the_weights_and_keep_the_bias(init, storage, net, sparse_names):
    model = net()
    before = copy.deepcopy(model)
    sparsify_(model, 0.5, init=init, storage=storage, generator=generator())
    for name in sparse_names(model):
        layer, old = model.get_submodule(name), before.get_submodule(name)
        weight = layer.to_dense()
        assert weight[layer.mask].all()
        assert (weight != old.weight)[layer.mask].all()
        if old.bias is not None:
            assert torch.equal(layer.bias, old.bias)


def test_generator_decides_and_names_do_not(net):
    def masks(rename):
        model = net()
        if rename:
            model = nn.ModuleDict({"x": model.stem, "y": model.body, "z": model.head})
        sparsify_(model, 0.8, init="per_neuron", generator=generator(3))
        return [m.to_dense() for m in model.modules() if isinstance(m, SparseLayer)]

    for first, second in zip(masks(False), masks(True), strict=True):
        assert torch.equal(first, second)


def test_only_the_generator_is_drawn_from(net):
    model, state = net(), torch.get_rng_state()
    sparsify_(model, 0.8, init="per_neuron", generator=generator())
    densify_(model)
    assert torch.equal(torch.get_rng_state(), state)


@both_storages
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_flags_and_dtype_survive(dtype, storage, net):
    model = net().to(dtype).eval()
    model.stem.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    biases = [model.stem.bias, model.head.bias]
    model.head.train()
    model.head.user_note = "keep me"
    sparsify_(model, 0.5, storage=storage)
    assert not model.stem.training
    assert model.head.training
    assert not model.stem.stored_weight.requires_grad
    assert model.head.stored_weight.requires_grad
    assert model.stem.bias is biases[0]
    assert model.head.bias is biases[1]
    assert not model.head.bias.requires_grad
    assert model.head.stored_weight.dtype == dtype
    assert model.head.user_note == "keep me"


def test_hooks_survive_with_their_handles(net):
    model, calls = net(), []
    handles = [
        model.head.register_forward_pre_hook(lambda module, args: calls.append(("pre", type(module)))),
        model.head.register_forward_hook(
            lambda module, args, kwargs, out: calls.append("post"), with_kwargs=True
        ),
        model.head.register_full_backward_hook(lambda module, grad_in, grad_out: calls.append("backward")),
    ]
    sparsify_(model, 0.5)
    x = torch.randn(2, 3, 8, 8)
    model(x).sum().backward()
    assert calls == [("pre", SparseLinear), "post", "backward"]
    densify_(model)
    calls.clear()
    model(x).sum().backward()
    assert calls == [("pre", nn.Linear), "post", "backward"]
    for handle in handles:
        handle.remove()
    calls.clear()
    model(x).sum().backward()
    assert not calls


def test_a_model_on_meta_is_converted_without_memory(net):
    with torch.device("meta"):
        model = net()
    sparsify_(model, 0.8, generator=generator())
    assert all(parameter.is_meta for parameter in model.parameters())
    source = net()
    sparsify_(source, 0.8, generator=generator())
    model.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.eval()(x), source.eval()(x))


def test_module_lists_and_modules_registered_under_other_parents():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.ModuleList([shared, nn.Linear(4, 4)]), "b": nn.Sequential(shared)})
    report = sparsify_(model, 0.5)
    assert model["a"][0] is model["b"][0]
    assert isinstance(model["a"][0], SparseLinear)
    assert report.layers[0].aliases == ("b.0",)
    assert report.numel == 32


@both_storages
def test_ties_survive_and_go_back(storage, reasons, sparse_names, tied):
    model, dense = tied(), tied()
    report = sparsify_(model, 0.5, storage=storage)
    assert sparse_names(model) == ["a", "c"]
    assert model.a is model.b
    assert model.c.stored_weight is model.a.stored_weight
    assert model.c.bias is not model.a.bias
    assert model.c.pattern is model.a.pattern
    assert report.numel == 16 * 16
    assert report.nnz == 128
    assert reasons(report) == {
        "embedding": "Embedding is not nn.Linear or nn.Conv2d",
        "head": "its weight is tied to embedding.weight, which stays dense; give it a Parameter of its "
        "own first (in transformers, tie_word_embeddings=False)",
    }
    assert model.head.weight is model.embedding.weight
    tokens = torch.randint(30, (4,))
    with torch.no_grad():
        dense.a.weight.mul_(model.a.mask)
    torch.testing.assert_close(model(tokens), dense(tokens))
    assert densify_(model) == ["a", "c"]
    assert model.a is model.b
    assert model.c.weight is model.a.weight
    torch.testing.assert_close(model(tokens), dense(tokens))


def test_a_tied_layer_stays_dense_with_an_excluded_one(reasons, sparse_names, tied):
    model = tied()
    model.other = nn.Linear(3, 3)
    report = sparsify_(model, 0.5, exclude=["c"])
    assert sparse_names(model) == ["other"]
    assert reasons(report)["a"] == "its weight is tied to c.weight, which stays dense"
    assert model.a.weight is model.c.weight


@pytest.mark.parametrize("names", [["a"], ["b"], ["c"], ["a", "b", "c"]], ids="+".join)
def test_a_mask_for_one_tied_layer_is_for_all(names, sparse_names, tied):
    model, mask = tied(), torch.rand(16, 16) < 0.5
    sparsify_(model, masks=dict.fromkeys(names, mask))
    assert sparse_names(model) == ["a", "c"]
    assert torch.equal(model.c.mask, mask)


@both_storages
@pytest.mark.parametrize("nested", [False, True], ids=["layer", "encoder with padding"])
def test_transformer_encoder_inference_uses_the_sparse_layers(nested, storage):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2) if nested else nn.ModuleList([layer])
    sparsify_(model, 0.5, storage=storage)
    keywords = (
        {"src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])} if nested else {}
    )
    run = model if nested else model[0]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SparseLayer) and storage == "masked":
                module.weight[~module.mask] = 1e6  # what the fused path would read
    x = torch.randn(2, 5, 16)
    for module in run.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    expected = run.train()(x, **keywords).detach()
    with torch.no_grad():
        got = run.eval()(x, **keywords)
    valid = torch.ones(2, 5, dtype=torch.bool)
    if nested:
        valid[1, 3:] = False
    torch.testing.assert_close(got[valid], expected[valid])


def test_the_fused_paths_of_a_transformer_encoder_come_back():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    gelu = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu")
    slow = nn.TransformerEncoderLayer(16, 4, 32, activation=torch.tanh)
    model = nn.ModuleList([encoder, gelu, slow])

    def switches():
        layers = [*encoder.layers, gelu, slow]
        return encoder.use_nested_tensor, [layer.activation_relu_or_gelu for layer in layers]

    before, attributes = switches(), {name: set(vars(module)) for name, module in model.named_modules()}
    assert before == (True, [1, 1, 2, 0])
    sparsify_(model, 0.5, exclude=["1"])
    assert switches() == (False, [0, 0, 2, 0])
    sparsify_(model, 0.5)  # a second call remembers what the first one found
    assert switches() == (False, [0, 0, 0, 0])
    densify_(encoder.layers[0])
    assert switches() == (False, [1, 0, 0, 0])
    densify_(copy.deepcopy(model))
    densify_(model)
    assert switches() == before
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


@both_storages
def test_densify_restores_plain_modules(storage, net, sparse_names):
    model = net()
    sparsify_(model, 0.7, storage=storage)
    x = torch.randn(2, 3, 8, 8)
    model.eval()
    expected, biases = model(x), [model.stem.bias, model.head.bias]
    masks = {name: model.get_submodule(name).mask for name in sparse_names(model)}
    assert densify_(model) == ["stem", "body.0", "head"]
    assert type(model.stem) is type(model.body[0]) is nn.Conv2d
    assert type(model.head) is nn.Linear
    for name, mask in masks.items():
        assert not model.get_submodule(name).weight[~mask].any()
    assert model.stem.bias is biases[0]
    assert not model.stem.training
    torch.testing.assert_close(model(x), expected)
    assert densify_(model) == []
    net().load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            SparseLinear(4, 4, sparsity=0.5),
            r"model must .*a single SparseLinear, already sparse; use its to_dense_module\(\)",
        ),
        ("model", "model must .*got 'model'"),
    ],
    ids=["a sparse layer", "no module"],
)
def test_densify_refuses(model, message):
    with pytest.raises(TypeError, match=message):
        densify_(model)


@pytest.mark.parametrize(
    "convert", [lambda model: sparsify_(model, 0.5), densify_], ids=["sparsify", "densify"]
)
def test_what_is_wrapped_for_data_parallel_training_is_refused(convert, ddp):
    model = ddp(nn.Sequential(nn.Linear(4, 4), SparseLinear(4, 4, sparsity=0.5)))
    modules = list(model.modules())
    with pytest.raises(ValueError, match="model must not be wrapped in DistributedDataParallel"):
        convert(model)
    assert list(model.modules()) == modules


def test_numpy_integers_in_dense_layers():
    three = np.int64(3)
    model = nn.Sequential(nn.Conv2d(three, 4, 3, padding=np.int64(1)), nn.Linear(20, np.int64(30)))
    report = sparsify_(model, 0.5)
    assert report.nnz == 54 + 300
    assert [type(module) for module in densify_(model) and model] == [nn.Conv2d, nn.Linear]


@pytest.mark.parametrize("name", ["values", "mask", "init", "storage", "groups", "pattern", "to_dense"])
def test_an_attribute_under_a_name_of_sparse_layers_is_refused(name, net):
    model, draws = net(), generator()
    setattr(model.head, name, "mine")
    modules, state = dict(model.named_modules()), draws.get_state()
    with pytest.raises(ValueError, match=f"got '{name}' on layer 'head'; rename it, or exclude the layer"):
        sparsify_(model, 0.5, generator=draws)
    assert dict(model.named_modules()) == modules
    assert getattr(model.head, name) == "mine"
    assert torch.equal(draws.get_state(), state)
    sparsify_(model, 0.5, exclude=["head"])


def test_attributes_that_only_the_other_dense_type_has_are_kept(net):
    model = net()
    model.head.in_channels = 7
    sparsify_(model, 0.5)
    assert model.head.in_channels == 7
    densify_(model)
    assert model.head.in_channels == 7


def test_a_new_weight_has_no_gradient_and_no_attributes_of_the_old_one(net):
    model = net()
    model.head.weight.tag = "mine"
    model.head.bias.tag = "mine"
    model.head.weight.grad = torch.ones_like(model.head.weight)
    sparsify_(model, 0.5)
    assert model.head.values.grad is None
    assert not hasattr(model.head.values, "tag")
    assert model.head.bias.tag == "mine"


def test_symbolic_tracing_with_sparse_layers_as_leaves(net):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, SparseLayer) or super().is_leaf_module(module, name)

    model = net().eval()
    sparsify_(model, 0.5)
    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(traced(x), model(x))
