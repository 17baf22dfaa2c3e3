"""What sparse layers keep through copies, moves, changes of pattern and ties."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sparsekern.formats.pattern import Pattern
from sparsekern.nn import SparseLinear

both_storages = pytest.mark.parametrize("storage", ["compact", "masked"])
both_layers = pytest.mark.parametrize("kind", ["linear", "conv"])


@both_layers
@both_storages
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(kind, storage, way, assert_same, assert_unchanged, make, snapshot):
    layer = make(kind, storage)
    if way == "deepcopy":
        copied = copy.deepcopy(layer)
        assert copied.pattern is layer.pattern
    elif way == "pickle":
        copied = pickle.loads(pickle.dumps(layer))
    else:
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert_same(copied, layer, kind)
    before = snapshot(layer)
    with torch.no_grad():
        copied.stored_weight.add_(1)
    copied.set_pattern(Pattern.random(layer.pattern.shape, 0.75, generator=torch.Generator().manual_seed(9)))
    assert_unchanged(layer, before)


@both_storages
def test_exponential_moving_average(storage, make):
    model = nn.Sequential(make("linear", storage), nn.ReLU(), nn.Linear(12, 2))
    average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    first = model[0].to_dense().detach().clone()
    with torch.no_grad():
        model[0].stored_weight.add_(2)
    average.update_parameters(model)
    mask = model[0].mask
    torch.testing.assert_close(average.module[0].to_dense(), torch.where(mask, first + 1, 0))
    average.load_state_dict(copy.deepcopy(average.state_dict()))


@both_storages
def test_moves_change_the_weight_only(storage, make):
    layer = make("linear", storage)
    pattern = layer.pattern
    for cast, dtype in (
        (layer.half, torch.float16),
        (layer.bfloat16, torch.bfloat16),
        (layer.double, torch.float64),
    ):
        assert cast() is layer
        assert layer.stored_weight.dtype == layer.bias.dtype == dtype
        assert layer.pattern is pattern
        assert pattern.data.dtype == torch.int32
    layer.to("cpu", torch.float32)
    assert layer.pattern is pattern


@both_storages
def test_meta_and_back(storage, make):
    layer = make("linear", storage)
    pattern = layer.pattern
    layer.to("meta")
    assert layer.stored_weight.is_meta
    assert layer.pattern == pattern
    layer.to_empty(device="cpu")
    assert layer.pattern == pattern
    layer.reset_parameters()
    assert layer(torch.randn(3, 20)).isfinite().all()


def test_the_pattern_is_sent_where_the_weight_goes(make, monkeypatch):
    layer, sent = make("linear"), []
    monkeypatch.setattr(Pattern, "to", lambda self, device: sent.append(torch.device(device).type) or self)
    layer.to("cpu")
    assert sent == ["cpu"]
    # Nothing to send: a pattern has no form on the meta device.
    layer.to("meta")
    assert sent == ["cpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@both_layers
@both_storages
def test_pattern_follows_to_the_gpu(kind, storage, assert_same, make, draw_input):
    layer = make(kind, storage)
    reference, x = copy.deepcopy(layer), draw_input(kind)
    layer.cuda()
    assert layer.pattern.device.type == "cuda"
    assert layer.state_dict()["pattern"].device.type == "cuda"
    torch.testing.assert_close(layer(x.cuda()).cpu(), reference(x), rtol=1e-2, atol=1e-2)
    layer.cpu()
    assert layer.pattern.device.type == "cpu"
    assert_same(layer, reference, kind)


def other_pattern(layer, sparsity=0.75):
    return Pattern.random(layer.pattern.shape, sparsity, generator=torch.Generator().manual_seed(5))


@both_layers
def test_set_pattern_moves_values_and_gradients(kind, make, draw_input):
    layer = make(kind)
    layer(draw_input(kind)).square().sum().backward()
    dense, grad, old_mask = layer.to_dense().detach(), layer.pattern.unpack(layer.values.grad), layer.mask
    values, pointer, new = layer.values, layer.values.data_ptr(), other_pattern(layer)
    layer.set_pattern(new)
    assert layer.pattern == new
    assert layer.values is values
    assert values.data_ptr() == pointer
    assert torch.equal(layer.to_dense(), torch.where(new.to_mask(), dense, 0))
    assert torch.equal(new.unpack(values.grad), torch.where(new.to_mask(), grad, 0))
    assert not layer.to_dense()[new.to_mask() & ~old_mask].any()
    layer(draw_input(kind)).sum().backward()


def test_set_pattern_resizes_on_demand(assert_unchanged, make, snapshot):
    layer = make("linear")
    layer.values.grad = torch.randn_like(layer.values)
    dense, grad = layer.to_dense().detach(), layer.pattern.unpack(layer.values.grad)
    before, values, new = snapshot(layer), layer.values, other_pattern(layer, 0.5)
    with pytest.raises(ValueError, match=r"pattern must have 60 active positions.*got 120.*resize=True"):
        layer.set_pattern(new)
    assert_unchanged(layer, before)
    layer.set_pattern(new, resize=True)
    assert layer.values is values
    assert values.shape == (120,)
    assert torch.equal(layer.to_dense(), torch.where(new.to_mask(), dense, 0))
    assert torch.equal(new.unpack(values.grad), torch.where(new.to_mask(), grad, 0))


def test_set_pattern_leaves_a_masked_weight_alone(make):
    layer = make("linear", "masked")
    with torch.no_grad():
        layer.weight.normal_()
    weight, new = layer.weight.detach().clone(), other_pattern(layer, 0.5)
    layer.set_pattern(new)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.to_dense(), torch.where(new.to_mask(), weight, 0))


@both_storages
def test_set_pattern_refuses(storage, assert_unchanged, make, snapshot):
    layer = make("linear", storage)
    before = snapshot(layer)
    with pytest.raises(ValueError, match=r"pattern must have the weight's shape \(12, 20\), got \(6, 10\)"):
        layer.set_pattern(Pattern.from_mask(torch.ones(6, 10, dtype=torch.bool)))
    with pytest.raises(TypeError, match=r"pattern must be a sparsekern.Pattern, got a torch.bool"):
        layer.set_pattern(torch.ones(12, 20, dtype=torch.bool))
    assert_unchanged(layer, before)


@pytest.mark.parametrize(("storage", "name"), [("compact", "weight"), ("masked", "values")])
def test_the_other_storage_has_another_name(storage, name, make):
    layer = make("linear", storage)
    message = f"a SparseLinear with storage='{storage}' has no '{name}': .*Parameter '{layer.weight_name}'"
    assert not hasattr(layer, name)
    with pytest.raises(AttributeError, match=message):
        getattr(layer, name)
    for value in (nn.Parameter(torch.ones(12, 20)), torch.ones(12, 20)):
        with pytest.raises(AttributeError, match=message):
            setattr(layer, name, value)
    assert [name for name, _ in layer.named_parameters()] == [layer.weight_name, "bias"]
    with pytest.raises(AttributeError, match="object has no attribute 'wieght'"):
        layer.wieght  # noqa: B018


def test_pattern_is_read_only(make):
    layer = make("linear")
    with pytest.raises(AttributeError):
        layer.pattern = other_pattern(layer)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, 1e-2),
    ],
    ids=["SGD with momentum", "AdamW"],
)
def test_optimizers_see_one_vector_of_nnz_elements(make_optimizer, make, draw_input):
    layer = make("linear")
    optimizer = make_optimizer(layer.parameters())
    x, before = draw_input("linear"), layer.to_dense().detach()
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    states = [v for v in optimizer.state[layer.values].values() if isinstance(v, torch.Tensor) and v.dim()]
    assert states
    assert all(state.shape == (layer.pattern.nnz,) for state in states)
    changed = layer.to_dense().detach() != before
    assert changed[layer.mask].all()
    assert not changed[~layer.mask].any()


@both_storages
def test_tied_layers_share_weight_and_pattern(storage, make):
    a, b = make("linear", storage), make("linear", storage, seed=1)
    b.tie_weight(a)
    assert b.stored_weight is a.stored_weight
    new = other_pattern(a)
    a.set_pattern(new)
    assert b.pattern is a.pattern
    assert torch.equal(a.to_dense(), b.to_dense())
    model = copy.deepcopy(nn.Sequential(a, b))
    assert model[0].stored_weight is model[1].stored_weight
    model[1].set_pattern(other_pattern(a, 0.75))
    assert model[0].pattern is model[1].pattern
    assert len(list(model.parameters())) == 3


def test_assign_unties(assert_unchanged, make, snapshot):
    a, b = make("linear"), make("linear", seed=1)
    b.tie_weight(a)
    before = snapshot(a)
    b.load_state_dict(make("linear", seed=2, sparsity=0.5).state_dict(), assign=True)
    assert_unchanged(a, before)
    assert b.values.shape == (120,)


def test_tie_weight_refuses(make):
    layer = make("linear")
    with pytest.raises(TypeError, match="other must be a SparseLinear, got SparseConv2d"):
        layer.tie_weight(make("conv"))
    with pytest.raises(
        ValueError, match=r"other must have storage and weight shape .*compact.* got .*masked"
    ):
        layer.tie_weight(make("linear", "masked"))


def test_a_masked_layer_becomes_one_that_was_made_compact():
    masked = SparseLinear(7, 5, sparsity=0.6, storage="masked", dtype=torch.float64)
    made = SparseLinear(7, 5, pattern=masked.pattern, dtype=torch.float64)
    dense = masked.to_dense().detach()
    values = torch.nn.Parameter(masked.pattern.pack(masked.weight.detach()))
    masked.make_compact(values)
    assert masked.values is values
    assert (masked.storage, masked.weight_name) == ("compact", "values")
    assert not hasattr(masked, "weight")
    assert [name for name, _ in masked.named_parameters()] == [name for name, _ in made.named_parameters()]
    assert list(masked.state_dict()) == list(made.state_dict())
    assert repr(masked) == repr(made)
    assert torch.equal(masked.to_dense(), dense)
    made.load_state_dict(masked.state_dict())
    x = torch.randn(3, 7, dtype=torch.float64)
    assert torch.equal(masked(x), made(x))
    torch.testing.assert_close(masked(x), x @ dense.T + masked.bias)


def test_what_cannot_become_compact_is_refused_and_nothing_changes():
    layer = SparseLinear(7, 5, sparsity=0.6, storage="masked", bias=False)
    weight, nnz = layer.weight, layer.pattern.nnz
    with pytest.raises(
        TypeError, match=r"values must be a torch\.nn\.Parameter, got a torch\.float32 tensor"
    ):
        layer.make_compact(torch.zeros(nnz))
    with pytest.raises(ValueError, match=rf"values must have shape \({nnz},\), got \(5, 7\)"):
        layer.make_compact(torch.nn.Parameter(torch.zeros(5, 7)))
    assert layer.weight is weight
    assert layer.storage == "masked"
    layer.make_compact(torch.nn.Parameter(torch.zeros(nnz)))
    assert layer.bias is None
    with pytest.raises(ValueError, match="layer must have storage='masked', got 'compact'"):
        layer.make_compact(torch.nn.Parameter(torch.zeros(nnz)))
