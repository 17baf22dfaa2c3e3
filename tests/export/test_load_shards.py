"""Loading a model that is in several files: what it restores, and what it refuses before anything changes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern import export
from sparsekern.export.tensors import named_tensors
from tests.export.networks import X, dense_network, network, on_meta, shard, snapshot


def assert_equal(model, other):
    state, found = model.state_dict(), other.state_dict()
    assert list(state) == list(found)
    for key, value in state.items():
        assert torch.equal(value, found[key]), key


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_round_trip_keeps_the_parameters(storage, tmp_path):
    model, other = network(storage), network(storage, seed=1)
    export.save_sharded(model, tmp_path, shard_bytes=1000)
    parameters = list(other.parameters())
    export.load_sharded(other, str(tmp_path))
    assert_equal(model, other)
    assert all(mine is before for mine, before in zip(other.parameters(), parameters, strict=True))


def test_a_model_on_meta_whose_layers_are_dense(saved):
    model, folder = saved
    other = on_meta(dense_network)
    other[5].weight.requires_grad_(False)
    export.load_sharded(other, folder)
    assert_equal(model, other)
    assert type(other[3]) is sk.nn.SparseLinear
    assert type(other[5]) is nn.Linear
    assert [p.requires_grad for p in other[5].parameters()] == [False, True]
    torch.testing.assert_close(other.eval()(X), model.eval()(X))


def test_a_model_on_meta_that_is_sparse_at_another_sparsity(saved):
    model, folder = saved
    other = on_meta(dense_network)
    sk.sparsify_(other, sparsity=0.4, exclude=["5"])
    export.load_sharded(other, folder)
    assert_equal(model, other)


def test_another_number_of_values_in_memory(saved):
    model, folder = saved
    other = dense_network()
    sk.sparsify_(other, sparsity=0.4, exclude=["5"])
    values = other[3].values
    export.load_sharded(other, folder)
    assert other[3].values is values
    assert_equal(model, other)


def test_another_dtype(saved):
    model, folder = saved
    other = on_meta(dense_network).to(torch.bfloat16)
    export.load_sharded(other, folder)
    assert other[3].values.dtype == torch.bfloat16
    assert torch.equal(other[3].values, model[3].values.bfloat16())


def tied(seed, meta=False):
    torch.manual_seed(seed)
    with torch.device("meta" if meta else "cpu"):
        model = nn.Sequential(
            nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 9, bias=False)
        )
        model[2].weight, model[4].weight = model[1].weight, model[0].weight
        model.append(model[1])
    return model


@pytest.mark.parametrize("how", ["dense on meta", "sparse on meta", "in memory", "another sparsity"])
def test_ties_stay(how, tmp_path):
    model = tied(0)
    sk.sparsify_(model, sparsity=0.5, init="per_neuron")
    export.save_sharded(model, tmp_path, shard_bytes=300)
    other = tied(1, meta="meta" in how)
    if how != "dense on meta":
        sk.sparsify_(other, sparsity=0.25 if how == "another sparsity" else 0.5)
    export.load_sharded(other, tmp_path)
    assert_equal(model, other)
    assert other[1].values is other[2].values
    assert other[5] is other[1]
    assert other[4].weight is other[0].weight
    other[1].set_pattern(sk.Pattern.from_mask(torch.eye(8, dtype=torch.bool)), resize=True)
    assert other[2].pattern is other[1].pattern


@pytest.mark.parametrize("options", [{"method": "fixed"}, {"refresh_every": 3}], ids=["fixed", "held"])
@pytest.mark.parametrize("meta", [False, True], ids=["memory", "meta"])
def test_two_four_and_int8(meta, options, tmp_path):
    def make(build=lambda layers: layers()):
        model = build(lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)))
        sk.sparsify_(model, pattern="2:4", **options)
        return model

    model = make()
    model(torch.randn(3, 16))
    export.save_sharded(model, tmp_path, shard_bytes=200)
    other = make(on_meta if meta else lambda layers: layers())
    export.load_sharded(other, tmp_path)
    assert_equal(model, other)
    if options == {"method": "fixed"}:
        sk.nn.quantize_int8_(model.eval())
        sk.nn.quantize_int8_(other.eval())
        export.save_sharded(model, tmp_path)
        other[0].values.zero_()
        export.load_sharded(other, tmp_path)
        assert_equal(model, other)


class WithBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("steps", torch.arange(6), persistent=False)


def test_buffers_that_are_in_no_state_dict(tmp_path):
    model = WithBuffer()
    sk.sparsify_(model, 0.5)
    with torch.no_grad():
        model.scale.fill_(4)
    export.save_sharded(model, tmp_path)
    other = on_meta(WithBuffer)
    before = snapshot(other)
    with pytest.raises(ValueError, match=r"got none on the model itself \(WithBuffer\) with scale and steps"):
        export.load_sharded(other, tmp_path)
    assert snapshot(other) == before

    def reset(module):
        module.scale.data.fill_(1)
        torch.arange(6, out=module.steps)

    export.load_sharded(other, tmp_path, reset_fn=reset)
    assert_equal(model, other)
    assert torch.equal(other.steps, torch.arange(6))


def other_network(change):
    model = network(seed=1)
    change(model)
    return model


OTHERS = {
    "another shape of a dense layer": (
        lambda model: model.__setitem__(5, nn.Linear(16, 7)),
        r"expected shape \(7, 16\) for '5\.weight', found \(5, 16\)",
    ),
    "another shape of a sparse layer": (
        lambda model: model.__setitem__(3, sk.nn.SparseLinear(32, 8, sparsity=0.5)),
        r"expected .*\[8, 32\].* for layer '3', found .*\[16, 32\]",
    ),
    "another storage": (
        lambda model: model.__setitem__(3, sk.nn.SparseLinear(32, 16, sparsity=0.5, storage="masked")),
        r"'pattern weight'.* for layer '3', found .*'pattern values'",
    ),
    "a tensor more": (
        lambda model: model.append(nn.LayerNorm(5)),
        r"expected a tensor for '6\.weight', found none",
    ),
    "a tensor less": (
        lambda model: model.__setitem__(5, nn.Linear(16, 5, bias=False)),
        r"expected no tensor, which the model has not for '5\.bias', found one",
    ),
    "another kind": (
        lambda model: model[1].register_buffer("running_mean", torch.zeros(8, dtype=torch.int32)),
        r"expected torch\.int32 for '1\.running_mean', found torch\.float32",
    ),
    "tied": (
        lambda model: setattr(model[1], "bias", model[1].weight),
        r"expected the tensor of '1\.weight', which the model shares with it for '1\.bias', found another",
    ),
}


@pytest.mark.parametrize("change", OTHERS)
def test_another_model_is_refused_before_anything_is_loaded(change, saved):
    act, message = OTHERS[change]
    model = other_network(act)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        export.load_sharded(model, saved[1])
    assert snapshot(model) == before


def test_values_of_another_length_than_their_pattern(tmp_path):
    model = network()
    model[3].values.data = torch.zeros(5)
    export.save_sharded(model, tmp_path)
    other = network(seed=1)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"for '3\.pattern' and a weight to fit it, found .* \(5,\)"):
        export.load_sharded(other, tmp_path)
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_fused_inference_stays_on_where_nothing_is_loaded(tmp_path):
    def encoder():
        return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 8))

    model = encoder()
    sk.sparsify_(model, 0.5, exclude=["1"])
    export.save_sharded(model, tmp_path)
    other = on_meta(encoder)
    other[1] = nn.Linear(8, 3, device="meta")
    with pytest.raises(ValueError, match=r"expected shape \(3, 8\) for '1\.weight'"):
        export.load_sharded(other, tmp_path)
    assert type(other[0].linear1) is nn.Linear
    assert other[0].activation_relu_or_gelu == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, r"model must be a torch\.nn\.Module, got 3"),
        ({"folder": None}, TypeError, r"folder must be the path of a folder, got None"),
        ({"folder": __file__}, ValueError, r"folder must be the path of a folder, got"),
        ({"folder": "/no/such/folder"}, FileNotFoundError, r"/no/such/folder"),
        ({"device": "meta"}, ValueError, r"device must be one that holds contents"),
        ({"reset_fn": "zeros"}, TypeError, r"reset_fn must be callable, got 'zeros'"),
    ],
)
def test_bad_arguments(arguments, error, message, saved):
    arguments = {"model": network(), "folder": saved[1], **arguments}
    with pytest.raises(error, match=message):
        export.load_sharded(arguments.pop("model"), arguments.pop("folder"), **arguments)


def test_files_of_shards_are_no_files_of_whole_models(saved):
    with pytest.raises(ValueError, match="expected the header of save_safetensors, found"):
        export.load_safetensors(network(), shard(saved[1], 1))


def test_nothing_is_copied_to_name_the_tensors():
    model = network()
    named = named_tensors(model)
    assert list(named) == list(model.state_dict())
    assert sum(entry.nbytes for entry in named.values()) == sum(t.nbytes for t in model.state_dict().values())


MEMORY = """
import sys, torch, sparsekern as sk
from torch import nn
from benchmarks.memory_process import forget_peak, give_back, status

torch.set_num_threads(1)
def on_meta():
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(4096, 4096, bias=False) for _ in range(12)))

small = nn.Sequential(sk.nn.SparseLinear(64, 64, sparsity=0.5))
sk.export.save_sharded(small, sys.argv[1] + "/small")
sk.export.load_sharded(small.to("meta"), sys.argv[1] + "/small")

model = on_meta()
sk.sparsify_(model, 0.95, init="per_neuron", device="cpu")
largest = max(layer.values.nbytes + layer.pattern.nbytes for layer in model)
held = sum(layer.values.nbytes + layer.pattern.nbytes for layer in model)
sums = [layer.values.sum().item() for layer in model]
spare = 3 * largest + 40 * 2**20  # tensors of a layer, and the pieces that files are read and hashed in
give_back(); forget_peak(); before = status("VmRSS")
sk.export.save_sharded(model, sys.argv[1], shard_bytes=held // 3)
saving = status("VmHWM") - before
del model
give_back(); before = status("VmRSS")
forget_peak()
model = on_meta()
sk.export.load_sharded(model, sys.argv[1])
loading = status("VmHWM") - before - held
print(held, largest, saving, loading, spare)
assert [layer.values.sum().item() for layer in model] == sums
assert held > 70e6 and spare < held
assert saving < spare and loading < spare, (saving, loading, spare)
"""


def test_memory_of_200_million_positions(tmp_path):
    """Beside the model, that of one layer."""
    result = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    print(result.stdout)
