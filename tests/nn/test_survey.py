"""Which layers sparsify_ converts, what it leaves and why, and that a mistake changes nothing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparsekern.formats.pattern import Pattern
from sparsekern.nn import SparseLinear, sparsify_, split_attention_


def test_masks_by_name(masked_dense_twin, net, reasons, sparse_names):
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
def test_exclude(exclude, converted, net, reasons, sparse_names):
    model = net()
    report = sparsify_(model, 0.5, exclude=exclude)
    assert sparse_names(model) == converted
    assert all("excluded by" in reason for reason in reasons(report).values())


def test_filter_fn(net, reasons, sparse_names):
    model, seen = net(), []

    def wide(module, name):
        seen.append((type(module), name))
        return name != "head"

    report = sparsify_(model, 0.5, exclude=["stem"], filter_fn=wide)
    assert seen == [(nn.Conv2d, "body.0"), (nn.Linear, "head")]
    assert sparse_names(model) == ["body.0"]
    assert reasons(report)["head"] == "filter_fn returned False"


def test_sparsity_counts_converted_layers_only(net):
    model = net()
    report = sparsify_(model, 0.9, exclude=["stem"])
    assert report.nnz == round(0.1 * (16 * 4 * 9 + 10 * 144))


class Quiet(nn.Linear):
    """A subclass that computes what its base does."""


class Loud(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.relu())


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(2, 3, 4))
        self.down = nn.Parameter(torch.zeros(2, 4, 3))


class Odd(nn.Module):
    """Every kind of layer that has to stay as it is, each with its own reason."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(4, 4)
        self.embedding = nn.Embedding(5, 4)
        self.sequence = nn.Conv1d(4, 4, 3)
        self.transposed = nn.ConvTranspose2d(2, 2, 3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.lazy = nn.LazyLinear(3)
        self.reflect = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
        self.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
        self.pruned = prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5)
        self.normed = nn.utils.weight_norm(nn.Linear(4, 4))
        self.spectral = nn.utils.spectral_norm(nn.Conv2d(2, 2, 3))
        self.quiet = Quiet(4, 4)
        self.loud = Loud(2, 2, 3)
        self.experts = Experts()
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
    "sequence": "Conv1d is not nn.Linear or nn.Conv2d; an nn.Conv2d with a kernel of (1, k) computes",
    "attention": "nn.Linear or nn.Conv2d; sparsekern.nn.split_attention_(model) gives it projections",
    "attention.out_proj": "nn.MultiheadAttention reads its weight, past its forward: sparsekern.nn.split_att",
    "lazy": "LazyLinear is not initialized yet; run the model once before",
    "reflect": "padding_mode='reflect' is not supported: pad in a layer before it",
    "parametrized": "its weight is computed by WeightNorm, not a Parameter; torch.nn.utils.parametrize."
    "remove_parametrizations(layer, 'weight') first",
    "orthogonal": "its weight is computed by Orthogonal, not",
    "pruned": "by a hook of pruning, not a Parameter; torch.nn.utils.prune.remove(layer, 'weight') first",
    "normed": "by a hook of weight_norm, not a Parameter; torch.nn.utils.remove_weight_norm(layer) first",
    "spectral": "a hook of spectral_norm, not a Parameter; torch.nn.utils.remove_spectral_norm(layer) first",
    "quiet": "Quiet is a subclass of nn.Linear; only the exact type is converted: put an nn.Linear with its",
    "loud": "Loud is a subclass of nn.Conv2d; only the exact type is converted: where its own f",
    "experts": "Experts is not nn.Linear or nn.Conv2d: it holds up and down itself",
    "complex": "dtype torch.complex64 is not supported",
    "adapted": "parameters, buffers or modules of its own",
    "patched": "its forward was replaced",
    "saved": "state-dict hooks",
    "hooked": "its weight has gradient hooks",
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_stays_dense_is_named_with_the_reason(reasons, sparse_names):
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


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_ways_out_lead_out(sparse_names):
    """After what the reasons say to do, the layers convert, and compute what they did before."""
    torch.manual_seed(0)
    model = Odd()
    x = torch.randn(3, 4)
    layers = {name: getattr(model, name) for name in ("parametrized", "orthogonal", "pruned", "normed")}
    expected = {name: layer(x) for name, layer in layers.items()}
    model.lazy(x)
    for layer in (model.parametrized, model.orthogonal):
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    prune.remove(model.pruned, "weight")
    nn.utils.remove_weight_norm(model.normed)
    nn.utils.remove_spectral_norm(model.spectral)
    names = split_attention_(model)
    assert names == ["attention"]
    sparsify_(model, 0.0)
    assert sparse_names(model) == [
        "plain",
        *(f"attention.{which}_proj" for which in ("q", "k", "v", "out")),
        *("lazy", "parametrized", "orthogonal", "pruned", "normed", "spectral"),
    ]
    for name, y in expected.items():
        torch.testing.assert_close(getattr(model, name)(x), y)


def test_a_layer_that_attention_reads_itself_stays_dense(reasons):
    """Even of the exact type: nn.MultiheadAttention would take the weight past the sparse layer's forward."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "plain": nn.Linear(4, 4)})
    model["attention"].out_proj = nn.Linear(8, 8)
    report = sparsify_(model, 0.5, storage="masked")
    assert "reads its weight, past its forward" in reasons(report)["attention.out_proj"]
    model["attention"](*[torch.randn(3, 2, 8)] * 3)


def test_a_second_call_changes_nothing(net, reasons):
    model = net()
    sparsify_(model, 0.8)
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    report = sparsify_(model, 0.5)
    assert not report.converted
    assert set(reasons(report).values()) == {"already sparse"}
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_second_call_converts_what_is_still_dense(net):
    model = net()
    sparsify_(model, 0.8, exclude=["head"])
    stem = model.stem
    report = sparsify_(model, 0.5)
    assert [layer.name for layer in report.converted] == ["head"]
    assert model.stem is stem
    assert report.sparsity == 0.5


def mask(*shape):
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of sparsity and masks must be given, got none"),
        (
            {"sparsity": 0.5, "masks": {"head": mask(10, 144)}},
            ValueError,
            "exactly one of sparsity and masks must be given, got both",
        ),
        ({"sparsity": 0.5, "masks": {}}, ValueError, "masks must be for at least one layer, got {}"),
        ({"sparsity": 1.0}, ValueError, "sparsity"),
        ({"sparsity": -0.5}, ValueError, "sparsity"),
        ({"sparsity": math.nan}, ValueError, "sparsity"),
        ({"sparsity": True}, TypeError, "sparsity"),
        ({"sparsity": "0.9"}, TypeError, "sparsity"),
        ({"sparsity": 0.5, "distribution": "ERK"}, ValueError, "distribution must .*'erk', got 'ERK'"),
        ({"sparsity": 0.5, "pattern": "4:8"}, ValueError, "pattern must .*'2:4', got '4:8'"),
        ({"sparsity": 0.5, "pattern": "block", "block_size": 48}, ValueError, "block_size .*got 48"),
        ({"sparsity": 0.5, "pattern": "block", "block_size": 64.0}, TypeError, "block_size must .*got 64.0"),
        ({"sparsity": 0.5, "block_size": 64}, ValueError, "block_size must be left out unless .*got 64"),
        ({"sparsity": 0.5, "filter_fn": "x"}, TypeError, "filter_fn must be callable, got 'x'"),
        ({"masks": {"head": mask(10, 144)}, "generator": 3}, TypeError, "generator must be .*got 3"),
        ({"sparsity": 0.5, "exclude": 5}, TypeError, "exclude must be names or glob patterns .*got 5"),
        ({"sparsity": 0.5, "exclude": None}, TypeError, "exclude must be names or glob patterns .*got None"),
        ({"sparsity": 0.5, "storage": "csr"}, ValueError, "storage must .*'masked', got 'csr'"),
        ({"sparsity": 0.5, "init": "zeros"}, ValueError, "init must .*'keep'.*got 'zeros'"),
        (
            {"sparsity": 0.5, "exclude": ["haed"]},
            ValueError,
            "exclude must .*got 'haed', which matches none; did you mean 'head'",
        ),
        (
            {"sparsity": 0.5, "exclude": ["layers.*"]},
            ValueError,
            r"exclude must .*got 'layers\.\*', which matches none",
        ),
        ({"sparsity": 0.5, "exclude": [3]}, TypeError, "exclude must .*got 3"),
        (
            {"sparsity": 0.5, "exclude": ["*"]},
            ValueError,
            r"got Net with none \(stem: excluded by '\*';",
        ),
        (
            {"sparsity": 0.5, "filter_fn": lambda m, n: False},
            ValueError,
            "got Net with none .*filter_fn returned False",
        ),
        ({"masks": {}}, ValueError, "masks must be for at least one layer, got {}"),
        ({"masks": [mask(10, 144)]}, TypeError, "masks must be a mapping"),
        (
            {"masks": {"head": mask(10, 144)}, "distribution": "erk"},
            ValueError,
            "distribution must be left out where masks are given, got 'erk'",
        ),
        (
            {"masks": {"head": mask(10, 144)}, "pattern": "block"},
            ValueError,
            "pattern must be left out where masks are given, got 'block'",
        ),
        (
            {"masks": {"haed": mask(10, 144)}},
            ValueError,
            "masks must be for names of layers, got 'haed'; did you mean 'head'",
        ),
        ({"masks": {"norm": mask(8)}}, ValueError, "masks must be for names of layers, got 'norm'"),
        (
            {"masks": {"head": mask(10, 144).float()}},
            TypeError,
            r"masks\['head'\] must .*torch.bool.*torch.float32",
        ),
        (
            {"masks": {"head": mask(144, 10)}},
            ValueError,
            r"masks\['head'\] must .*\(10, 144\).*got \(144, 10\)",
        ),
        (
            {"masks": {"stem": mask(8, 3, 3, 3), "head": mask(9, 144)}},
            ValueError,
            r"masks\['head'\] must .*\(10, 144\).*got \(9, 144\)",
        ),
        (
            {"masks": {"head": mask(10, 144)}, "exclude": "head"},
            ValueError,
            "masks must be for layers that convert, got 'head': excluded by",
        ),
    ],
    ids=[
        "neither",
        "both",
        "both, masks empty",
        "sparsity one",
        "sparsity negative",
        "sparsity NaN",
        "sparsity bool",
        "sparsity str",
        "distribution",
        "pattern",
        "block size of no kernel",
        "block size of another type",
        "block size without blocks",
        "filter that is no function",
        "generator without use",
        "exclude of another type",
        "exclude None",
        "storage",
        "init",
        "exclude misspelt",
        "exclude matches nothing",
        "exclude number",
        "exclude everything",
        "filter everything",
        "masks empty",
        "masks list",
        "masks with a distribution",
        "masks with blocks",
        "mask name misspelt",
        "mask of a norm",
        "mask dtype",
        "mask shape",
        "second mask shape",
        "mask of an excluded layer",
    ],
)
def test_a_mistake_changes_nothing(arguments, error, message, net):
    model = net()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        sparsify_(model, **arguments)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Linear(4, 4), TypeError, "a single Linear, .*SparseLinear.from_dense"),
        (nn.Conv2d(4, 4, 1), TypeError, "a single Conv2d, .*SparseConv2d.from_dense"),
        (SparseLinear(4, 4, sparsity=0.5), TypeError, "SparseLinear, already sparse"),
        (
            nn.Sequential(nn.ReLU()),
            ValueError,
            "model must have an nn.Linear or nn.Conv2d to convert, got Sequential with none",
        ),
        (nn.Sequential(nn.Embedding(3, 3)), ValueError, "got Sequential with none .*Embedding is not"),
        (lambda x: x, TypeError, "model must be a module that contains layers"),
    ],
    ids=["a linear", "a conv", "a sparse layer", "no weights", "an embedding", "a function"],
)
def test_models_that_cannot_be_converted(model, error, message):
    with pytest.raises(error, match=message):
        sparsify_(model, 0.5)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"head": mask(30, 16)},
            "masks must be for layers that convert, got 'head': its weight is tied to embedding.weight",
        ),
        (
            {"embedding": mask(30, 16)},
            "masks must be for layers that convert, got 'embedding': Embedding is not",
        ),
        ({"a": mask(16, 16), "c": ~mask(16, 16)}, "masks must be the same for 'a' and 'c'"),
    ],
    ids=["tied to an embedding", "an embedding", "masks that differ"],
)
def test_masks_that_ties_forbid(masks, message, sparse_names, tied):
    model = tied()
    with pytest.raises(ValueError, match=message):
        sparsify_(model, masks=masks)
    assert not sparse_names(model)


def test_a_sparse_layer_that_is_given_a_mask(net):
    model = net()
    sparsify_(model, 0.5)
    with pytest.raises(ValueError, match="masks must be for layers that convert, got 'head': already sparse"):
        sparsify_(model, masks={"head": mask(10, 144)})
