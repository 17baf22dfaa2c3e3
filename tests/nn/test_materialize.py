"""Models built on the meta device, which `sparsify_` gives their memory: never a dense weight."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn.materialize import Materialization


class Net(nn.Module):
    """Convolutions, norms, an embedding with a tied head, two linear layers that share a weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(24, 12)
        self.conv = nn.Conv2d(3, 6, 3, groups=3)
        self.norm = nn.BatchNorm2d(6)
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12, bias=False)
        self.second.weight = self.first.weight
        self.layer_norm = nn.LayerNorm(12)
        self.wide = nn.Linear(12, 40)
        self.attention = nn.MultiheadAttention(12, 2)
        self.head = nn.Linear(12, 24)
        self.head.weight = self.embedding.weight


def on_meta(make=Net):
    with torch.device("meta"):
        return make()


def untouched(model, before):
    return all(
        tensor.is_meta and tensor is before[name]
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    ) and not any(isinstance(module, sk.nn.SparseModule) for module in model.modules())


def tensors(model):
    return dict([*model.named_parameters(), *model.named_buffers()])


@pytest.mark.parametrize(
    "options",
    [
        {"init": "per_neuron"},
        {"init": "per_layer", "distribution": "erk"},
        {"init": "dense", "storage": "masked"},
        {"init": "per_neuron", "pattern": "block", "block_size": 32},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_sparse_layers_have_the_bits_of_an_ordinary_model(options):
    reports, models = [], []
    for model, device in ((Net(), None), (on_meta(), "cpu")):
        generator = torch.Generator().manual_seed(3)
        report = sk.sparsify_(model, 0.8, generator=generator, device=device, **options)
        reports.append(str(report))
        models.append(model)
    ordinary, built = models
    assert reports[0] == reports[1]
    for name, layer in ordinary.named_modules():
        if isinstance(layer, sk.nn.SparseModule):
            other = built.get_submodule(name)
            assert other.pattern == layer.pattern
            assert torch.equal(other.stored_weight, layer.stored_weight), name
            assert other.stored_weight.dtype == layer.stored_weight.dtype
    assert list(tensors(built)) == list(tensors(ordinary))
    assert not any(tensor.is_meta for tensor in tensors(built).values())


def test_what_stays_dense_is_what_its_modules_make_of_it():
    model = on_meta()
    torch.manual_seed(0)
    sk.sparsify_(model, 0.8, init="per_neuron", device="cpu", generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    expected = nn.Embedding(24, 12)
    assert torch.equal(model.embedding.weight, expected.weight)
    assert torch.equal(model.norm.running_var, torch.ones(6))
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(model.layer_norm.weight, torch.ones(12))
    for layer in (model.conv, model.first, model.wide):
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
    assert 0 < model.head.bias.abs().max() < 12**-0.5
    # Attention as its own constructor leaves it, whose bias of the projection is written after that layer's.
    assert torch.equal(model.attention.out_proj.bias, torch.zeros(12))
    assert 0 < model.attention.in_proj_weight.abs().max() < 1


def test_ties_and_flags_stay():
    model = on_meta()
    model.norm.weight.requires_grad_(False)
    model.norm.weight.kept = "by the user"
    model.wide.bias.requires_grad_(False)
    model.wide.weight.requires_grad_(False)
    model.eval()
    model.shared = model.wide
    sk.sparsify_(model, 0.8, init="per_neuron", device="cpu")
    assert model.head.weight is model.embedding.weight
    assert model.second.values is model.first.values
    assert model.shared is model.wide
    assert not model.norm.weight.requires_grad
    assert model.norm.weight.kept == "by the user"
    assert not model.wide.bias.requires_grad
    assert not model.wide.values.requires_grad
    assert not model.wide.training
    assert model.second.bias is None


def test_it_trains_in_bfloat16():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 7)).to(torch.bfloat16)
    sk.sparsify_(model, 0.7, init="per_neuron", device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    optimizer = torch.optim.AdamW(model.parameters())
    before = model[0].values.detach().clone()
    model(torch.randn(5, 40, dtype=torch.bfloat16)).float().square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].values, before)


@pytest.mark.parametrize("method", ["fixed", "sr_ste"])
def test_two_four(method):
    states = []
    for build, device in ((lambda make: make(), None), (on_meta, "cpu")):
        model = build(lambda: nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 5)))
        generator = torch.Generator().manual_seed(1)
        sk.sparsify_(model, pattern="2:4", method=method, init="dense", generator=generator, device=device)
        states.append({key: value for key, value in model.state_dict().items() if "bias" not in key})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_layers_that_are_sparse_already_and_parts_that_have_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    sk.sparsify_(model, 0.5, init="per_layer", exclude=["1"])
    pattern = model[0].pattern
    real = nn.LayerNorm(8)
    with torch.no_grad():
        real.weight.fill_(3)
    model.append(real)
    weight = real.weight
    sk.sparsify_(model, 0.5, init="dense", device="cpu")
    assert model[0].pattern is pattern
    assert model[0].values.isfinite().all()
    assert model[2].weight is weight
    assert torch.equal(weight, torch.full((8,), 3.0))
    assert model(torch.randn(3, 16)).isfinite().all()


def test_recurrent_layers_compute_with_what_they_were_given():
    model = on_meta(lambda: nn.ModuleList([nn.Linear(4, 4), nn.LSTM(4, 3)]))
    sk.sparsify_(model, 0.5, init="dense", device="cpu")
    assert model[1](torch.randn(2, 4))[0].isfinite().all()


@pytest.mark.slow
def test_models_of_transformers_have_a_reset_fn():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
    )
    model = on_meta(lambda: transformers.LlamaForCausalLM(config))
    with pytest.raises(ValueError, match=r"got none on 'model\.layers\.0\.input_layernorm' \(LlamaRMSNorm\)"):
        sk.sparsify_(model, 0.9, init="per_neuron", device="cpu")
    sk.sparsify_(model, 0.9, init="per_neuron", device="cpu", reset_fn=model._init_weights)
    assert model(torch.arange(7)[None]).logits.isfinite().all()


class Scale(nn.Module):
    """Half of it on a real device; the other half is written through ``.data``, which nobody counts."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 7.0, device="cpu"))
        self.offset = nn.Parameter(torch.empty(3, device="meta"))
        self.linear = nn.Linear(3, 3, device="meta")

    def reset_parameters(self):
        self.scale.data.fill_(1)
        self.offset.data.fill_(0)


class Allowed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.empty(3, dtype=torch.bool))

    def reset_parameters(self):
        self.mask.fill_(True)


def test_what_is_written_may_look_like_what_is_not():
    model = nn.Sequential(Allowed().to("meta"), nn.Linear(4, 4, device="meta"))
    sk.sparsify_(model, 0.5, init="per_neuron", device="cpu")
    assert model[0].mask.tolist() == [True, True, True]


class Positions(nn.Module):
    """Makes its buffer anew, on the default device."""

    def __init__(self):
        super().__init__()
        self.reset_parameters()

    def reset_parameters(self):
        self.register_buffer("places", torch.arange(4))


def test_buffers_that_a_module_makes_anew_are_on_the_device():
    with torch.device("meta"):
        model = Positions()
        memory = Materialization(model, torch.device("cpu"))
        memory.fill(memory.modules)
    assert model.places.device.type == "cpu"
    assert model.places.tolist() == [0, 1, 2, 3]


def test_a_module_of_which_half_is_there():
    model = Scale()
    sk.sparsify_(model, 0.5, init="dense", device="cpu")
    assert torch.equal(model.scale, torch.full((3,), 7.0))
    assert torch.equal(model.offset, torch.zeros(3))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.token = nn.Parameter(torch.zeros(1, 8))
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64), persistent=False)


def reset_plain(module):
    if isinstance(module, Plain):
        nn.init.constant_(module.token, 5)
        module.steps.zero_()


def test_reset_fn():
    model = on_meta(Plain)
    sk.sparsify_(model, 0.5, init="per_neuron", device="cpu", reset_fn=reset_plain)
    assert torch.equal(model.token, torch.full((1, 8), 5.0))
    assert torch.equal(model.steps, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (
            Net,
            {},
            ValueError,
            r"init must be 'dense' or 'per_layer' or 'per_neuron' for a model on meta, .* got 'keep'",
        ),
        (Net, {"pattern": "2:4", "sparsity": None}, ValueError, r"init must be 'dense' for a model on meta"),
        (
            Net,
            {"init": "dense", "device": "meta"},
            ValueError,
            r"device must be one that holds contents.*got 'meta'",
        ),
        (
            Net,
            {"init": "dense", "device": "gpu"},
            ValueError,
            r"device must be .*, got 'gpu': Expected one of",
        ),
        (Net, {"init": "dense", "device": 1.5}, TypeError, r"device must be .*, got 1\.5 \(float\)"),
        (Net, {"init": "dense", "reset_fn": 3}, TypeError, r"reset_fn must be callable, got 3"),
        (
            Net,
            {"init": "dense", "device": None, "reset_fn": print},
            ValueError,
            r"reset_fn must be left out unless device",
        ),
        (
            Plain,
            {"init": "dense"},
            ValueError,
            r"on every module .* got none on the model itself \(Plain\) with token and steps:",
        ),
        (
            Plain,
            {"init": "dense", "reset_fn": lambda module: nn.init.zeros_(module.token)},
            ValueError,
            r"reset_fn must write all tensors of a module, got the model itself \(Plain\), whose 'steps' it",
        ),
        (
            Plain,
            {"init": "dense", "reset_fn": lambda module: 1 / 0},
            ZeroDivisionError,
            "division",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3)),
            {"init": "dense"},
            ValueError,
            r"initialized modules, got '1' \(LazyLinear\), a lazy one",
        ),
    ],
)
def test_refused_before_anything_has_changed(make, options, error, message):
    model = on_meta(make)
    before = tensors(model)
    with pytest.raises(error, match=message):
        sk.sparsify_(model, **{"sparsity": 0.5, "device": "cpu", **options})
    assert untouched(model, before)


def test_a_model_that_has_its_weights():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(
        ValueError, match=r"device must be left out for a model that is not on the meta device"
    ):
        sk.sparsify_(model, 0.5, device="cpu")
    assert type(model[0]) is nn.Linear


PEAK = """
import torch, sparsekern as sk
from torch import nn
from benchmarks.memory_process import status, forget_peak

torch.set_num_threads(1)
sk.nn.SparseLinear(64, 64, sparsity=0.5)
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(8192, 8192, bias=False) for _ in range(6)))
before = status("VmRSS")
forget_peak()
report = sk.sparsify_(model, 0.95, init="per_neuron", device="cpu")
peak = status("VmHWM") - before
held = sum(layer.values.nbytes + layer.pattern.nbytes for layer in model)
largest = report.layers[0]
# Beside what is held: a bit for each position while one pattern is drawn, or vectors of 24 bytes for each of
# its values while they are drawn; and 16 MiB of everything else.
bound = held + max(largest.numel // 8, 24 * largest.nnz) + 16 * 2**20
print(report.numel, held, peak, bound)
assert report.numel == 6 * 8192**2 and held < 160e6
assert peak < bound, (peak, bound)
"""


def test_peak_memory_of_400_million_positions():
    """Dense, it would be 1.6 GB."""
    result = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
