"""What layers keep through state dicts, copies, moves, and changes of pattern."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sparsekern.formats.pattern import Pattern
from sparsekern.nn import SparseConv2d, SparseLinear

STORAGES = ["compact", "masked"]
LAYERS = {
    "linear": lambda **keywords: SparseLinear(20, 12, **keywords),
    "conv": lambda **keywords: SparseConv2d(4, 6, (3, 2), padding=1, **keywords),
}
INPUTS = {"linear": (3, 20), "conv": (2, 4, 7, 7)}

both_storages = pytest.mark.parametrize("storage", STORAGES)
both_layers = pytest.mark.parametrize("kind", LAYERS)


def make(kind, storage="compact", seed=0, sparsity=0.75, **keywords):
    generator = torch.Generator().manual_seed(seed)
    layer = LAYERS[kind](sparsity=sparsity, storage=storage, generator=generator, **keywords)
    with torch.no_grad():
        layer.bias.normal_(generator=generator)
    return layer


def snapshot(layer):
    return layer.pattern, {name: p.detach().clone() for name, p in layer.named_parameters()}


def assert_unchanged(layer, before):
    pattern, parameters = before
    assert layer.pattern is pattern
    for name, parameter in layer.named_parameters():
        assert torch.equal(parameter, parameters[name])


def assert_same(a, b, kind):
    assert a.pattern == b.pattern
    assert torch.equal(a.to_dense(), b.to_dense())
    x = torch.randn(INPUTS[kind])
    assert torch.equal(a(x), b(x))


# State dicts


@both_layers
@both_storages
def test_state_dict_keys(kind, storage):
    layer = make(kind, storage)
    state = layer.state_dict()
    assert set(state) == {"values" if storage == "compact" else "weight", "bias", "pattern"}
    assert torch.equal(state["pattern"], layer.pattern.data)
    assert len(list(layer.buffers())) == 0


@both_layers
@both_storages
@pytest.mark.parametrize("sparsity", [0.75, 0.4], ids=["same nnz", "other nnz"])
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_loads_into_a_layer_with_another_pattern(kind, storage, sparsity, strict):
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
    layer(torch.randn(INPUTS[kind])).sum().backward()


def test_loading_shares_no_memory_with_the_state_dict():
    saved, layer = make("linear"), make("linear", seed=1)
    state = saved.state_dict()
    layer.load_state_dict(state)
    pointers = {tensor.data_ptr() for tensor in state.values()}
    assert not pointers & {layer.values.data_ptr(), layer.bias.data_ptr(), layer.pattern.data.data_ptr()}


@both_layers
@both_storages
def test_load_with_assign(kind, storage):
    saved, layer = make(kind, storage), make(kind, storage, seed=1, sparsity=0.5)
    state = saved.state_dict()
    layer.load_state_dict(state, assign=True)
    assert layer.stored_weight.data_ptr() == state[layer.weight_name].data_ptr()
    assert_same(layer, saved, kind)


@both_storages
def test_meta_layer_loads_with_assign(storage):
    saved = make("conv", storage)
    with torch.device("meta"):
        layer = SparseConv2d(4, 6, (3, 2), padding=1, sparsity=0.5, storage=storage)
    assert layer.stored_weight.is_meta
    layer.load_state_dict(saved.state_dict(), assign=True)
    assert_same(layer, saved, "conv")


@both_storages
def test_safetensors_round_trip(tmp_path, storage):
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


def test_weights_only_round_trip(tmp_path):
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
def test_a_bad_state_dict_changes_nothing(edit, message, strict):
    state = make("linear").state_dict()
    edit(state)
    layer = make("linear", seed=1, sparsity=0.5)
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state, strict=strict)
    assert_unchanged(layer, before)


def test_a_dense_state_dict_into_compact_storage():
    layer, dense = make("linear"), nn.Linear(20, 12, bias=False)
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=r'(?s)Missing key.*"pattern", "values".*Unexpected key.*"weight"'):
        layer.load_state_dict(dense.state_dict())
    assert_unchanged(layer, before)
    result = layer.load_state_dict(dense.state_dict(), strict=False)
    assert set(result.missing_keys) == {"pattern", "values", "bias"}
    assert result.unexpected_keys == ["weight"]


def test_a_dense_state_dict_into_masked_storage():
    layer, dense = make("linear", "masked"), nn.Linear(20, 12)
    pattern = layer.pattern
    assert layer.load_state_dict(dense.state_dict(), strict=False).missing_keys == ["pattern"]
    assert layer.pattern is pattern
    assert torch.equal(layer.to_dense(), torch.where(layer.mask, dense.weight, 0))


def test_unexpected_keys_are_still_reported():
    state = {**make("linear").state_dict(), "extra": torch.ones(1)}
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"extra"'):
        make("linear", seed=1).load_state_dict(state)


# Copies and moves


@both_layers
@both_storages
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(kind, storage, way):
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
def test_exponential_moving_average(storage):
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
def test_moves_change_the_weight_only(storage):
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
def test_meta_and_back(storage):
    layer = make("linear", storage)
    pattern = layer.pattern
    layer.to("meta")
    assert layer.stored_weight.is_meta
    assert layer.pattern == pattern
    layer.to_empty(device="cpu")
    assert layer.pattern == pattern
    layer.reset_parameters()
    assert layer(torch.randn(3, 20)).isfinite().all()


@pytest.mark.gpu
@both_layers
@both_storages
def test_pattern_follows_to_the_gpu(kind, storage):
    layer = make(kind, storage)
    reference, x = copy.deepcopy(layer), torch.randn(INPUTS[kind])
    layer.cuda()
    assert layer.pattern.device.type == "cuda"
    assert layer.state_dict()["pattern"].device.type == "cuda"
    torch.testing.assert_close(layer(x.cuda()).cpu(), reference(x), rtol=1e-2, atol=1e-2)
    layer.cpu()
    assert layer.pattern.device.type == "cpu"
    assert_same(layer, reference, kind)


# Changing the pattern


def other_pattern(layer, sparsity=0.75):
    return Pattern.random(layer.pattern.shape, sparsity, generator=torch.Generator().manual_seed(5))


@both_layers
def test_set_pattern_moves_values_and_gradients(kind):
    layer = make(kind)
    layer(torch.randn(INPUTS[kind])).square().sum().backward()
    dense, grad, old_mask = layer.to_dense().detach(), layer.pattern.unpack(layer.values.grad), layer.mask
    values, pointer, new = layer.values, layer.values.data_ptr(), other_pattern(layer)
    layer.set_pattern(new)
    assert layer.pattern == new
    assert layer.values is values
    assert values.data_ptr() == pointer
    assert torch.equal(layer.to_dense(), torch.where(new.to_mask(), dense, 0))
    assert torch.equal(new.unpack(values.grad), torch.where(new.to_mask(), grad, 0))
    assert not layer.to_dense()[new.to_mask() & ~old_mask].any()
    layer(torch.randn(INPUTS[kind])).sum().backward()


def test_set_pattern_resizes_on_demand():
    layer = make("linear")
    layer.values.grad = torch.randn_like(layer.values)
    dense, grad = layer.to_dense().detach(), layer.pattern.unpack(layer.values.grad)
    before, values, new = snapshot(layer), layer.values, other_pattern(layer, 0.5)
    with pytest.raises(ValueError, match=r"pattern: expected 60 active positions.*got 120.*resize=True"):
        layer.set_pattern(new)
    assert_unchanged(layer, before)
    layer.set_pattern(new, resize=True)
    assert layer.values is values
    assert values.shape == (120,)
    assert torch.equal(layer.to_dense(), torch.where(new.to_mask(), dense, 0))
    assert torch.equal(new.unpack(values.grad), torch.where(new.to_mask(), grad, 0))


def test_set_pattern_leaves_a_masked_weight_alone():
    layer = make("linear", "masked")
    with torch.no_grad():
        layer.weight.normal_()
    weight, new = layer.weight.detach().clone(), other_pattern(layer, 0.5)
    layer.set_pattern(new)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.to_dense(), torch.where(new.to_mask(), weight, 0))


@both_storages
def test_set_pattern_refuses(storage):
    layer = make("linear", storage)
    before = snapshot(layer)
    with pytest.raises(ValueError, match=r"pattern: expected shape \(12, 20\).*got \(6, 10\)"):
        layer.set_pattern(Pattern.from_mask(torch.ones(6, 10, dtype=torch.bool)))
    with pytest.raises(TypeError, match=r"pattern: expected a sparsekern.Pattern.*torch.bool"):
        layer.set_pattern(torch.ones(12, 20, dtype=torch.bool))
    assert_unchanged(layer, before)


def test_pattern_is_read_only():
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
def test_optimizers_see_one_vector_of_nnz_elements(make_optimizer):
    layer = make("linear")
    optimizer = make_optimizer(layer.parameters())
    x, before = torch.randn(INPUTS["linear"]), layer.to_dense().detach()
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


# Tied layers


@both_storages
def test_tied_layers_share_weight_and_pattern(storage):
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


def test_assign_unties():
    a, b = make("linear"), make("linear", seed=1)
    b.tie_weight(a)
    before = snapshot(a)
    b.load_state_dict(make("linear", seed=2, sparsity=0.5).state_dict(), assign=True)
    assert_unchanged(a, before)
    assert b.values.shape == (120,)


def test_tie_weight_refuses():
    layer = make("linear")
    with pytest.raises(TypeError, match="other: expected a SparseLinear, got SparseConv2d"):
        layer.tie_weight(make("conv"))
    with pytest.raises(
        ValueError, match=r"other: expected storage and weight shape .*compact.* got .*masked"
    ):
        layer.tie_weight(make("linear", "masked"))


# From and to dense modules


DENSE = {
    "linear": lambda: nn.Linear(20, 12),
    "conv": lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, bias=False),
}


@both_layers
@both_storages
@pytest.mark.parametrize("given", ["mask", "pattern"])
def test_from_dense_and_back(kind, storage, given):
    dense = DENSE[kind]().double().eval()
    dense.weight.requires_grad_(False)
    weight = dense.weight.clone()
    mask = torch.rand(weight.shape) < 0.3
    sparse = type(make(kind)).from_dense(
        dense, mask if given == "mask" else Pattern.from_mask(mask), storage=storage
    )
    assert sparse.stored_weight.dtype == torch.float64
    assert not sparse.stored_weight.requires_grad
    assert not sparse.training
    assert torch.equal(sparse.to_dense(), torch.where(mask, weight, 0))
    if storage == "masked":
        assert not sparse.weight[~mask].any()
    x = torch.randn(INPUTS[kind], dtype=torch.float64)
    back = sparse.to_dense_module()
    assert type(back) is type(dense)
    assert not back.weight.requires_grad
    assert not back.training
    assert torch.equal(back.weight, torch.where(mask, weight, 0))
    torch.testing.assert_close(sparse(x), back(x))
    assert torch.equal(dense.weight, weight)
    if dense.bias is not None:
        with torch.no_grad():
            sparse.bias.add_(1)
            back.bias.add_(2)
        assert not torch.equal(sparse.bias, dense.bias)
        assert not torch.equal(back.bias, sparse.bias)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: SparseLinear.from_dense(nn.Conv2d(1, 1, 1), m), TypeError, r"module: .*nn.Linear, got"),
        (lambda m: SparseLinear.from_dense(make("linear"), m), TypeError, "module: .*already sparse"),
        (lambda m: SparseLinear.from_dense(nn.LazyLinear(3), m), ValueError, "module: .*lazy"),
        (lambda m: SparseLinear.from_dense(nn.Linear(2, 2), m.float()), TypeError, "mask: .*torch.bool"),
        (
            lambda m: SparseLinear.from_dense(nn.Linear(3, 2), m),
            ValueError,
            r"mask: .*\(2, 3\).*got \(2, 2\)",
        ),
        (
            lambda m: SparseConv2d.from_dense(nn.Conv2d(2, 2, 1, padding_mode="reflect"), m[..., None, None]),
            ValueError,
            "padding_mode: expected 'zeros'",
        ),
        (
            lambda m: SparseLinear.from_dense(nn.Linear(2, 2), m, storage="csr"),
            ValueError,
            "storage: .* got 'csr'",
        ),
    ],
    ids=["other type", "sparse", "lazy", "mask dtype", "mask shape", "padding mode", "storage"],
)
def test_from_dense_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(2, 2, dtype=torch.bool))
