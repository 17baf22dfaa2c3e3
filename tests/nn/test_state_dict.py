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
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_loads_into_a_layer_with_another_pattern(kind, storage, strict, assert_same, make):
    saved, layer = make(kind, storage), make(kind, storage, seed=1)
    layer.stored_weight.grad = torch.ones_like(layer.stored_weight)
    parameter = layer.stored_weight
    result = layer.load_state_dict(saved.state_dict(), strict=strict)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert layer.stored_weight is parameter
    assert_same(layer, saved, kind)
    if storage == "compact":
        assert parameter.grad is None


@both_layers
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_another_number_of_values_is_refused(kind, strict, assert_unchanged, make, snapshot):
    saved, layer = make(kind), make(kind, seed=1, sparsity=0.4)
    before, nnz = snapshot(layer), layer.pattern.nnz
    message = rf"pattern must have {nnz} active positions.*got {saved.pattern.nnz};.*assign=True.*resize=True"
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(saved.state_dict(), strict=strict)
    assert_unchanged(layer, before)


def test_a_fused_optimizer_that_has_stepped_keeps_vectors_of_its_length(draw_input, make):
    """It does not compare the lengths of a Parameter and its state: another would corrupt memory."""
    layer = make("linear")
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    for load in (False, True):
        if load:
            optimizer.zero_grad()
            with pytest.raises(RuntimeError, match="optimizer states have that length too"):
                layer.load_state_dict(make("linear", seed=1, sparsity=0.4).state_dict())
        layer(draw_input("linear")).sum().backward()
        optimizer.step()
        state = optimizer.state[layer.values]
        assert layer.values.shape == layer.values.grad.shape == state["exp_avg"].shape == (60,)


@both_layers
def test_another_number_of_values_loads_as_the_error_says(kind, assert_same, make):
    saved = make(kind)
    assigned, resized = make(kind, seed=1, sparsity=0.4), make(kind, seed=1, sparsity=0.4)
    parameter = resized.values
    assigned.load_state_dict(saved.state_dict(), assign=True)
    resized.set_pattern(Pattern(saved.state_dict()["pattern"]), resize=True)
    resized.load_state_dict(saved.state_dict())
    assert resized.values is parameter
    assert_same(assigned, saved, kind)
    assert_same(resized, saved, kind)


def test_masked_storage_loads_any_number_of_active_positions(assert_same, make):
    saved, layer = make("conv", "masked"), make("conv", "masked", seed=1, sparsity=0.4)
    parameter = layer.weight
    layer.load_state_dict(saved.state_dict())
    assert layer.weight is parameter
    assert_same(layer, saved, "conv")


@both_storages
def test_writing_to_a_state_dict_leaves_the_pattern_alone(storage, make):
    """The usual loop of an exponential moving average, which mixes every tensor of two state dicts."""
    model, average = make("linear", storage), make("linear", storage, seed=1)
    patterns = [Pattern(layer.pattern.data) for layer in (model, average)]
    weight = average.stored_weight.detach().clone()
    state = average.state_dict()
    for a, b in zip(state.values(), model.state_dict().values(), strict=True):
        a.copy_(a * 0.9 + b * 0.1)
    # Weights are the live ones, as in any state dict.
    torch.testing.assert_close(average.stored_weight, weight * 0.9 + model.stored_weight * 0.1)
    assert [model.pattern, average.pattern] == patterns
    model.pattern.validate()
    average.pattern.validate()
    with pytest.raises(RuntimeError, match="pattern must be a valid pattern: "):
        average.load_state_dict(state)


@both_storages
def test_what_is_loaded_in_place_takes_effect_with_load_state_dict(storage, assert_same, make):
    """As torch.distributed.checkpoint does: it writes into what state_dict returned."""
    saved, layer = make("linear", storage), make("linear", storage, seed=1)
    old, state = Pattern(layer.pattern.data), layer.state_dict()
    assert old.data.shape == saved.pattern.data.shape
    for name, tensor in saved.state_dict().items():
        state[name].copy_(tensor)
    assert layer.pattern == old
    layer.load_state_dict(state)
    assert_same(layer, saved, "linear")


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
        (drop("values"), "values must be there, since the state dict's pattern differs"),
        (drop("pattern"), "pattern must come with the values"),
        (put("values", torch.ones(3)), r"values must have shape \(60,\), got .*\(3,\)"),
        (put("bias", torch.ones(3)), r"bias must have shape \(12,\), got .*\(3,\)"),
        (put("pattern", torch.ones(7)), "pattern must be a valid pattern: .*int32"),
        (put("pattern", "x"), "pattern must be the int32 data"),
        (put("pattern", torch.ones(99, dtype=torch.int32, device="meta")), "pattern must be .*contents"),
        (flip_magic, "pattern must be a valid pattern"),
        (
            put("pattern", Pattern.from_mask(torch.ones(6, 10, dtype=torch.bool)).data),
            r"pattern must have shape \(12, 20\), got \(6, 10\)",
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
    layer = make("linear", seed=1)
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


@pytest.mark.parametrize(("mine", "theirs"), [("compact", "masked"), ("masked", "compact")])
def test_a_state_dict_of_the_other_storage_is_named(mine, theirs, assert_unchanged, make, snapshot):
    layer = make("linear", mine)
    before = snapshot(layer)
    with pytest.raises(
        RuntimeError, match=f"got a layer saved with storage='{theirs}': load it into one with"
    ):
        layer.load_state_dict(make("linear", theirs, seed=1).state_dict())
    assert_unchanged(layer, before)


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
