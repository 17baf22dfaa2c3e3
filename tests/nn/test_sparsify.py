"""sparsify_ and densify_: what is swapped, what is left and why, and that a mistake changes nothing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparsekern.formats.pattern import Pattern
from sparsekern.nn import SparseConv2d, SparseLinear, densify_, sparsify_
from sparsekern.nn.base import SparseLayer


class Net(nn.Module):
    """Convolutions, a nested block, normalization, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(
            nn.Conv2d(8, 16, 3, stride=2, groups=2, bias=False), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(16 * 3 * 3, 10)

    def forward(self, x):
        return self.head(self.body(self.norm(self.stem(x))))


class Tied(nn.Module):
    """One module in two places (a, b), one that shares its weight (c), a head tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.a = nn.Linear(16, 16)
        self.b = self.a
        self.c = nn.Linear(16, 16)
        self.c.weight = self.a.weight
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.c(self.b(self.a(self.embedding(tokens)))))


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def tied():
    torch.manual_seed(0)
    return Tied()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def reasons(report):
    return {layer.name: layer.reason for layer in report.left}


def sparse_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, SparseLayer)]


def masked_dense_twin(model, sparse):
    """The dense model with the sparse one's masks applied: the oracle for init="keep"."""
    twin = copy.deepcopy(model)
    for name, layer in sparse.named_modules():
        if isinstance(layer, SparseLayer):
            with torch.no_grad():
                twin.get_submodule(name).weight.mul_(layer.mask)
    return twin


both_storages = pytest.mark.parametrize("storage", ["compact", "masked"])


@both_storages
@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_keep_equals_the_masked_dense_model(distribution, storage):
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


def test_distributions_differ():
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
def test_other_initializations_replace_the_weights_and_keep_the_bias(init, storage):
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


def test_generator_decides_and_names_do_not():
    def masks(rename):
        model = net()
        if rename:
            model = nn.ModuleDict({"x": model.stem, "y": model.body, "z": model.head})
        sparsify_(model, 0.8, init="per_neuron", generator=generator(3))
        return [m.to_dense() for m in model.modules() if isinstance(m, SparseLayer)]

    for first, second in zip(masks(False), masks(True), strict=True):
        assert torch.equal(first, second)


def test_only_the_generator_is_drawn_from():
    model, state = net(), torch.get_rng_state()
    sparsify_(model, 0.8, init="per_neuron", generator=generator())
    densify_(model)
    assert torch.equal(torch.get_rng_state(), state)


# Choosing layers


def test_masks_by_name():
    model, dense = net(), net()
    masks = {"stem": torch.rand(8, 3, 3, 3) < 0.5, "head": Pattern.from_mask(torch.rand(10, 144) < 0.2)}
    report = sparsify_(model, masks=masks)
    assert sparse_names(model) == ["stem", "head"]
    assert torch.equal(model.stem.mask, masks["stem"])
    assert model.head.pattern is masks["head"]
    assert reasons(report) == {"body.0": "no mask given"}
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), masked_dense_twin(dense, model)(x))


@pytest.mark.parametrize(
    ("exclude", "converted"),
    [
        ("stem", ["body.0", "head"]),
        (["stem", "head"], ["body.0"]),
        (["body"], ["stem", "head"]),
        (["body.*"], ["stem", "head"]),
        (["*e*"], ["body.0"]),
        (["norm"], ["stem", "body.0", "head"]),
    ],
    ids=["a string", "two names", "a container", "a glob", "a glob of two", "a layer without a matrix"],
)
def test_exclude(exclude, converted):
    model = net()
    report = sparsify_(model, 0.5, exclude=exclude)
    assert sparse_names(model) == converted
    assert all("excluded by" in reason for reason in reasons(report).values())


def test_filter_fn():
    model, seen = net(), []

    def wide(module, name):
        seen.append((type(module), name))
        return name != "head"

    report = sparsify_(model, 0.5, exclude=["stem"], filter_fn=wide)
    assert seen == [(nn.Conv2d, "body.0"), (nn.Linear, "head")]
    assert sparse_names(model) == ["body.0"]
    assert reasons(report)["head"] == "filter_fn returned False"


def test_sparsity_counts_converted_layers_only():
    model = net()
    report = sparsify_(model, 0.9, exclude=["stem"])
    assert report.nnz == round(0.1 * (16 * 4 * 9 + 10 * 144))


class Odd(nn.Module):
    """Every kind of layer that has to stay as it is, each with its own reason."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(4, 4)
        self.embedding = nn.Embedding(5, 4)
        self.transposed = nn.ConvTranspose2d(2, 2, 3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.lazy = nn.LazyLinear(3)
        self.reflect = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
        self.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.pruned = prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5)
        self.complex = nn.Linear(4, 4, dtype=torch.complex64)
        self.adapted = nn.Linear(4, 4)
        self.adapted.lora = nn.Parameter(torch.zeros(4, 1))
        self.patched = nn.Linear(4, 4)
        self.patched.forward = lambda x: x
        self.saved = nn.Linear(4, 4)
        self.saved.register_state_dict_post_hook(lambda *arguments: None)
        self.hooked = nn.Linear(4, 4)
        self.hooked.weight.register_hook(lambda grad: grad)


ODD_REASONS = {
    "embedding": "Embedding is not nn.Linear or nn.Conv2d",
    "transposed": "ConvTranspose2d is not nn.Linear or nn.Conv2d",
    "attention": "MultiheadAttention is not nn.Linear or nn.Conv2d",
    "attention.out_proj": "NonDynamicallyQuantizableLinear is a subclass of nn.Linear",
    "lazy": "LazyLinear is a subclass of nn.Linear",
    "reflect": "padding_mode='reflect' is not supported",
    "parametrized": "parametrized: its weight is computed",
    "pruned": "its weight is computed by a hook",
    "complex": "dtype torch.complex64 is not supported",
    "adapted": "parameters, buffers or modules of its own",
    "patched": "its forward was replaced",
    "saved": "state-dict hooks",
    "hooked": "its weight has gradient hooks",
}


def test_what_stays_dense_is_named_with_the_reason():
    model = Odd()
    before = {name: module for name, module in model.named_modules() if name != "plain"}
    report = sparsify_(model, 0.5)
    left = reasons(report)
    assert set(left) == set(ODD_REASONS)
    for name, reason in ODD_REASONS.items():
        assert reason in left[name]
        assert name in str(report)
    assert sparse_names(model) == ["plain"]
    assert all(model.get_submodule(name) is module for name, module in before.items())


def test_a_second_call_changes_nothing():
    model = net()
    sparsify_(model, 0.8)
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    report = sparsify_(model, 0.5)
    assert not report.converted
    assert set(reasons(report).values()) == {"already sparse"}
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_second_call_converts_what_is_still_dense():
    model = net()
    sparsify_(model, 0.8, exclude=["head"])
    stem = model.stem
    report = sparsify_(model, 0.5)
    assert [layer.name for layer in report.converted] == ["head"]
    assert model.stem is stem
    assert report.sparsity == 0.5


# What a swap keeps


@both_storages
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_flags_and_dtype_survive(dtype, storage):
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


def test_hooks_survive_with_their_handles():
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


def test_a_model_on_meta_is_converted_without_memory():
    with torch.device("meta"):
        model = Net()
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


# Ties


@both_storages
def test_ties_survive_and_go_back(storage):
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
        "head": "its weight is tied to embedding.weight, which stays dense",
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


def test_a_tied_layer_stays_dense_with_an_excluded_one():
    model = tied()
    model.other = nn.Linear(3, 3)
    report = sparsify_(model, 0.5, exclude=["c"])
    assert sparse_names(model) == ["other"]
    assert reasons(report)["a"] == "its weight is tied to c.weight, which stays dense"
    assert model.a.weight is model.c.weight


@pytest.mark.parametrize("names", [["a"], ["b"], ["c"], ["a", "b", "c"]], ids="+".join)
def test_a_mask_for_one_tied_layer_is_for_all(names):
    model, mask = tied(), torch.rand(16, 16) < 0.5
    sparsify_(model, masks=dict.fromkeys(names, mask))
    assert sparse_names(model) == ["a", "c"]
    assert torch.equal(model.c.mask, mask)


# PyTorch's fused encoder reads weights past the layers


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


# densify_


@both_storages
def test_densify_restores_plain_modules(storage):
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
    Net().load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SparseLinear(4, 4, sparsity=0.5), r"model: .*a single SparseLinear; use its to_dense_module\(\)"),
        ("model", "model: .*got 'model'"),
    ],
    ids=["a sparse layer", "no module"],
)
def test_densify_refuses(model, message):
    with pytest.raises(TypeError, match=message):
        densify_(model)


# Mistakes


def mask(*shape):
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of sparsity and masks, got none"),
        ({"sparsity": 0.5, "masks": {}}, ValueError, "exactly one of sparsity and masks, got both"),
        ({"sparsity": 1.0}, ValueError, "sparsity"),
        ({"sparsity": -0.5}, ValueError, "sparsity"),
        ({"sparsity": math.nan}, ValueError, "sparsity"),
        ({"sparsity": True}, TypeError, "sparsity"),
        ({"sparsity": "0.9"}, TypeError, "sparsity"),
        ({"sparsity": 0.5, "distribution": "ERK"}, ValueError, "distribution: .*'erk', got 'ERK'"),
        ({"sparsity": 0.5, "pattern": "2:4"}, ValueError, "pattern: .*'block', got '2:4'"),
        ({"sparsity": 0.5, "pattern": "block", "block_size": 48}, ValueError, "block_size .*got 48"),
        ({"sparsity": 0.5, "block_size": 0}, ValueError, "block_size: .*got 0"),
        ({"sparsity": 0.5, "storage": "csr"}, ValueError, "storage: .*'masked', got 'csr'"),
        ({"sparsity": 0.5, "init": "zeros"}, ValueError, "init: .*'keep'.*got 'zeros'"),
        (
            {"sparsity": 0.5, "exclude": ["haed"]},
            ValueError,
            "exclude: .*'haed' matches none; did you mean 'head'",
        ),
        ({"sparsity": 0.5, "exclude": ["layers.*"]}, ValueError, r"exclude: .*'layers\.\*' matches none"),
        ({"sparsity": 0.5, "exclude": [3]}, TypeError, "exclude: .*got 3"),
        (
            {"sparsity": 0.5, "exclude": ["*"]},
            ValueError,
            r"at least one .*Net has none \(stem: excluded by '\*';",
        ),
        (
            {"sparsity": 0.5, "filter_fn": lambda m, n: False},
            ValueError,
            "Net has none .*filter_fn returned False",
        ),
        ({"masks": {}}, ValueError, "Net has none .*no mask given"),
        ({"masks": [mask(10, 144)]}, TypeError, "masks: expected a mapping"),
        ({"masks": {"haed": mask(10, 144)}}, ValueError, "masks: .*'haed' is none; did you mean 'head'"),
        ({"masks": {"norm": mask(8)}}, ValueError, "masks: .*'norm' is none"),
        (
            {"masks": {"head": mask(10, 144).float()}},
            TypeError,
            r"masks\['head'\]: .*torch.bool.*torch.float32",
        ),
        ({"masks": {"head": mask(144, 10)}}, ValueError, r"masks\['head'\]: .*\(10, 144\).*got \(144, 10\)"),
        (
            {"masks": {"stem": mask(8, 3, 3, 3), "head": mask(9, 144)}},
            ValueError,
            r"masks\['head'\]: .*\(10, 144\).*got \(9, 144\)",
        ),
        (
            {"masks": {"head": mask(10, 144)}, "exclude": "head"},
            ValueError,
            "masks: 'head' cannot .*excluded by",
        ),
    ],
    ids=[
        "neither",
        "both",
        "sparsity one",
        "sparsity negative",
        "sparsity NaN",
        "sparsity bool",
        "sparsity str",
        "distribution",
        "pattern",
        "block size of no kernel",
        "block size zero",
        "storage",
        "init",
        "exclude misspelt",
        "exclude matches nothing",
        "exclude number",
        "exclude everything",
        "filter everything",
        "masks empty",
        "masks list",
        "mask name misspelt",
        "mask of a norm",
        "mask dtype",
        "mask shape",
        "second mask shape",
        "mask of an excluded layer",
    ],
)
def test_a_mistake_changes_nothing(arguments, error, message):
    model = net()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        sparsify_(model, **arguments)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Ddp(nn.parallel.DistributedDataParallel):
    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Linear(4, 4), TypeError, "a single Linear, .*SparseLinear.from_dense"),
        (nn.Conv2d(4, 4, 1), TypeError, "a single Conv2d, .*SparseConv2d.from_dense"),
        (SparseLinear(4, 4, sparsity=0.5), TypeError, "SparseLinear, already sparse"),
        (
            nn.Sequential(nn.ReLU()),
            ValueError,
            "at least one nn.Linear or nn.Conv2d to convert, Sequential has none",
        ),
        (nn.Sequential(nn.Embedding(3, 3)), ValueError, "Sequential has none .*Embedding is not"),
        (Ddp(nn.Sequential(nn.Linear(4, 4))), ValueError, "not wrapped in DistributedDataParallel"),
        (lambda x: x, TypeError, "model: expected a module"),
    ],
    ids=["a linear", "a conv", "a sparse layer", "no weights", "an embedding", "DDP", "a function"],
)
def test_models_that_cannot_be_converted(model, error, message):
    with pytest.raises(error, match=message):
        sparsify_(model, 0.5)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"head": mask(30, 16)}, "masks: 'head' cannot be converted: its weight is tied to embedding.weight"),
        ({"embedding": mask(30, 16)}, "masks: 'embedding' cannot be converted: Embedding is not"),
        ({"a": mask(16, 16), "c": ~mask(16, 16)}, "masks: expected the same mask for 'a' and 'c'"),
    ],
    ids=["tied to an embedding", "an embedding", "masks that differ"],
)
def test_masks_that_ties_forbid(masks, message):
    model = tied()
    with pytest.raises(ValueError, match=message):
        sparsify_(model, masks=masks)
    assert not sparse_names(model)


def test_a_sparse_layer_that_is_given_a_mask():
    model = net()
    sparsify_(model, 0.5)
    with pytest.raises(ValueError, match="masks: 'head' cannot be converted: already sparse"):
        sparsify_(model, masks={"head": mask(10, 144)})
