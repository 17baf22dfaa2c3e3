"""State dicts of sparse layers: what is saved, loaded into any pattern, and refused unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsekern.formats.pattern import Pattern
from sparsekern.nn import SparseConv2d

both_storages = pytest.mark.parametrize("storage", ["compact", "masked"])
both_layers = pytest.mark.parametrize("kind", ["linear", "conv"])


@both_layers
@both_storages
def test_state_dict_keys(kind, storage, make):
    layer = make(kind, storage)
    state = layer.state_dict()
    assert set(state) == {"values" if storage == "compact" else "weight", "bias", "pattern"}
    assert torch.equal(state["pattern"], layer.pattern.data)
    assert len(list(layer.buffers())) == 0


@both_layers
@both_storages
@pytest.mark.parametrize("sparsity", [0.75, 0.4], ids=["same nnz", "other nnz"])
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_loads_into_a_layer_with_another_pattern(kind, storage, sparsity, strict, assert_same, make):
    saved, layer = make(kind, storage), make(kind, storage, seed=1, sparsity=sparsity)
    layer.stored_weight.grad = torch.ones_like(layer.stored_weight)
    parameter = layer.stored_weight
    result = layer.load_state_dict(saved.state_dict(), strict=strict)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert layer.stored_weight is parameter
    assert_same(layer, saved, kind)
    if storage == "compact":
        assert parameter.grad is None
        assert parameter.shape == (saved.pattern.nnz,)


def test_loading_shares_no_memory_with_the_state_dict(make):
    saved, layer = make("linear"), make("linear", seed=1)
    state = saved.state_dict()
    layer.load_state_dict(state)
    pointers = {tensor.data_ptr() for tensor in state.values()}
    assert not pointers & {layer.values.data_ptr(), layer.bias.data_ptr(), layer.pattern.data.data_ptr()}


@both_layers
@both_storages
def test_load_with_assign(kind, storage, assert_same, make):
    saved, layer = make(kind, storage), make(kind, storage, seed=1, sparsity=0.5)
    state = saved.state_dict()
    layer.load_state_dict(state, assign=True)
    assert layer.stored_weight.data_ptr() == state[layer.weight_name].data_ptr()
    assert_same(layer, saved, kind)


@both_storages
def test_meta_layer_loads_with_assign(storage, assert_same, make):
    saved = make("conv", storage)
    with torch.device("meta"):
        layer = SparseConv2d(4, 6, (3, 2), padding=1, sparsity=0.5, storage=storage)
    assert layer.stored_weight.is_meta
    layer.load_state_dict(saved.state_dict(), assign=True)
    assert_same(layer, saved, "conv")


@both_storages
def test_safetensors_round_trip(tmp_path, storage, assert_same, make):
    from safetensors.torch import load_file, save_file

    model = nn.Sequential(make("linear", storage), nn.ReLU(), make("linear", storage, seed=1))
    # One pattern in two layers: safetensors refuses tensors that share memory.
    model[2].load_state_dict(model[0].state_dict())
    model[2].set_pattern(model[0].pattern)
    assert model[2].pattern is model[0].pattern
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = nn.Sequential(make("linear", storage, seed=2), nn.ReLU(), make("linear", storage, seed=3))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for mine, theirs in ((other[0], model[0]), (other[2], model[2])):
        assert_same(mine, theirs, "linear")


def test_weights_only_round_trip(tmp_path, assert_same, make):
    saved, layer = make("linear"), make("linear", seed=1)
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    layer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(layer, saved, "linear")


def drop(name):
    return lambda state: state.pop(name)


def put(name, value):
    return lambda state: state.update({name: value})


def flip_magic(state):
    state["pattern"] = state["pattern"].clone()
    state["pattern"][0] += 1


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("values"), "values: missing, and the state dict's pattern differs"),
        (drop("pattern"), "pattern: missing; values without their pattern"),
        (put("values", torch.ones(3)), r"values: expected shape \(60,\), got .*\(3,\)"),
        (put("bias", torch.ones(3)), r"bias: expected shape \(12,\), got .*\(3,\)"),
        (put("pattern", torch.ones(7)), "pattern: not a valid pattern: .*int32"),
        (put("pattern", "x"), "pattern: expected .*int32 data"),
        (put("pattern", torch.ones(99, dtype=torch.int32, device="meta")), "pattern: expected .*contents"),
        (flip_magic, "pattern: not a valid pattern"),
        (
            put("pattern", Pattern.from_mask(torch.ones(6, 10, dtype=torch.bool)).data),
            r"pattern: expected a pattern of shape \(12, 20\), got \(6, 10\)",
        ),
    ],
    ids=[
        "no values",
        "no pattern",
        "values of another length",
        "bias of another length",
        "float pattern",
        "no tensor",
        "meta pattern",
        "broken pattern",
        "pattern of another shape",
    ],
)
def test_a_bad_state_dict_changes_nothing(edit, message, strict, assert_unchanged, make, snapshot):
    state = make("linear").state_dict()
    edit(state)
    layer = make("linear", seed=1, sparsity=0.5)
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state, strict=strict)
    assert_unchanged(layer, before)


def test_a_dense_state_dict_into_compact_storage(assert_unchanged, make, snapshot):
    layer, dense = make("linear"), nn.Linear(20, 12, bias=False)
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=r'(?s)Missing key.*"pattern", "values".*Unexpected key.*"weight"'):
        layer.load_state_dict(dense.state_dict())
    assert_unchanged(layer, before)
    result = layer.load_state_dict(dense.state_dict(), strict=False)
    assert set(result.missing_keys) == {"pattern", "values", "bias"}
    assert result.unexpected_keys == ["weight"]


def test_a_dense_state_dict_into_masked_storage(make):
    layer, dense = make("linear", "masked"), nn.Linear(20, 12)
    pattern = layer.pattern
    assert layer.load_state_dict(dense.state_dict(), strict=False).missing_keys == ["pattern"]
    assert layer.pattern is pattern
    assert torch.equal(layer.to_dense(), torch.where(layer.mask, dense.weight, 0))


def test_unexpected_keys_are_still_reported(make):
    state = {**make("linear").state_dict(), "extra": torch.ones(1)}
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"extra"'):
        make("linear", seed=1).load_state_dict(state)
