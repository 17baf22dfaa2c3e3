"""State dicts of 2:4 layers: what is saved, resumed exactly, and refused unchanged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsekern.nn import TwoFourConv2d, TwoFourLinear

FORMS = {
    "every step": {},
    "held": {"refresh_every": 3},
    "held, transposable": {"refresh_every": 3, "transposable": True},
    "fixed": {"method": "fixed"},
    "fixed, transposable": {"method": "fixed", "transposable": True},
}
KINDS = {"linear": (16, 12), "conv": (4, 12, 3)}
every_form = pytest.mark.parametrize("form", FORMS)
both_kinds = pytest.mark.parametrize("kind", KINDS)


def make_layer(form, kind="linear", seed=0, **keywords):
    generator = torch.Generator().manual_seed(seed)
    layer = {"linear": TwoFourLinear, "conv": TwoFourConv2d}[kind]
    layer = layer(*KINDS[kind], generator=generator, **{**FORMS[form], **keywords})
    nn.init.normal_(layer.bias, generator=generator)
    return layer


def draw(layer, seed=1):
    shape = (4, 16) if isinstance(layer, TwoFourLinear) else (2, 4, 5, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(layer, steps, optimizer=None, first=0):
    optimizer = optimizer or torch.optim.AdamW(layer.parameters(), 0.3)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        layer(draw(layer, step)).square().mean().backward()
        optimizer.step()
    return optimizer


def assert_same(a, b):
    for mode in (True, False):
        a.train(mode)
        b.train(mode)
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.to_dense(), b.to_dense())
    x = draw(a)
    assert torch.equal(a(x), b(x))


@every_form
@both_kinds
def test_state_dict_keys(form, kind):
    layer = make_layer(form, kind)
    state = layer.state_dict()
    extra = {"every step": set(), "held": {"metadata", "age"}, "fixed": {"metadata"}}[form.partition(",")[0]]
    assert set(state) == {layer.weight_name, "bias", *extra}
    assert not list(layer.buffers())
    if "metadata" in extra:
        assert state["metadata"].dtype == torch.uint8
    if "age" in extra:
        assert state["age"].dtype == torch.int64


def test_the_state_dict_of_a_mask_chosen_at_every_step_is_that_of_the_dense_layer():
    layer, module = make_layer("every step"), nn.Linear(16, 12)
    layer.load_state_dict(module.state_dict())
    assert torch.equal(layer.weight, module.weight)
    module.load_state_dict(make_layer("every step", seed=1).state_dict())


@both_kinds
@pytest.mark.parametrize("form", ["every step", "held", "held, transposable", "fixed"])
@pytest.mark.parametrize("steps", range(1, 8))
def test_a_resumed_run_is_the_unbroken_one(steps, form, kind, tmp_path):
    layer = make_layer(form, kind)
    optimizer = trained(layer, steps)
    torch.save([layer.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    resumed = make_layer(form, kind, seed=5)
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(states[0])
    other = torch.optim.AdamW(resumed.parameters(), 0.3)
    other.load_state_dict(states[1])
    assert_same(resumed, layer.train())
    for step in range(steps, steps + 5):
        trained(layer, 1, optimizer, step)
        trained(resumed, 1, other, step)
        assert torch.equal(layer.stored_weight, resumed.stored_weight)
        assert torch.equal(layer.mask, resumed.mask)


def test_a_write_after_loading_is_no_change():
    """As when DistributedDataParallel sends the weights of the first process to all."""
    layer = make_layer("held")
    optimizer = trained(layer, 2)
    resumed = make_layer("held", seed=5)
    resumed.load_state_dict(layer.state_dict())
    with torch.no_grad():
        resumed.weight.copy_(layer.weight)
    other = torch.optim.AdamW(resumed.parameters(), 0.3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(2, 8):
        trained(layer, 1, optimizer, step)
        trained(resumed, 1, other, step)
        assert torch.equal(layer.weight, resumed.weight)


def test_a_run_that_goes_back_to_a_checkpoint_is_the_unbroken_one():
    layer = make_layer("held")
    optimizer = trained(layer, 2)
    states = copy.deepcopy([layer.state_dict(), optimizer.state_dict()])
    weights = []
    for _ in range(2):
        layer.load_state_dict(states[0])
        optimizer.load_state_dict(copy.deepcopy(states[1]))
        for step in range(2, 7):
            trained(layer, 1, optimizer, step)
        weights.append(layer.weight.detach().clone())
    assert torch.equal(*weights)
    unbroken = make_layer("held")
    trained(unbroken, 7)
    assert torch.equal(unbroken.weight, weights[0])


@every_form
@both_kinds
def test_safetensors_round_trip(form, kind, tmp_path):
    from safetensors.torch import load_file, save_file

    model = nn.Sequential(make_layer(form, kind))
    trained(model[0], 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = nn.Sequential(make_layer(form, kind, seed=2))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert_same(other[0], model[0])


@every_form
def test_load_keeps_the_parameter_and_shares_no_memory(form):
    saved, layer = make_layer(form), make_layer(form, seed=1)
    parameter, state = layer.stored_weight, saved.state_dict()
    layer.load_state_dict(state)
    assert layer.stored_weight is parameter
    for tensor in state.values():
        tensor.zero_()
    assert layer.stored_weight.abs().max() > 0
    layer.packed.check()


def test_gradients_of_another_fixed_mask_are_dropped():
    saved, layer = make_layer("fixed"), make_layer("fixed", seed=1)
    layer.values.grad = torch.ones_like(layer.values)
    layer.load_state_dict(layer.state_dict())
    assert layer.values.grad is not None
    layer.load_state_dict(saved.state_dict())
    assert layer.values.grad is None


@every_form
def test_load_with_assign(form):
    saved, layer = make_layer(form), make_layer(form, seed=1)
    trained(saved, 2)
    state = saved.state_dict()
    layer.load_state_dict(state, assign=True)
    assert layer.stored_weight.data_ptr() == state[layer.weight_name].data_ptr()
    assert_same(layer, saved)


def test_assign_unties():
    a, b = make_layer("fixed"), make_layer("fixed", seed=1)
    b.tie_weight(a)
    mask = a.mask
    b.load_state_dict(make_layer("fixed", seed=2).state_dict(), assign=True)
    assert torch.equal(a.mask, mask)
    assert not torch.equal(b.mask, mask)


@every_form
@both_kinds
def test_meta_layer_loads_with_assign(form, kind):
    saved = make_layer(form, kind)
    with torch.device("meta"):
        layer = make_layer(form, kind, device="meta")
    assert layer.stored_weight.is_meta
    layer.load_state_dict(saved.state_dict(), assign=True)
    assert_same(layer, saved)


@every_form
def test_writing_to_a_state_dict_leaves_the_mask_alone(form):
    """The usual loop of an exponential moving average, which mixes every tensor of two state dicts."""
    model, average = make_layer(form), make_layer(form, seed=1)
    for layer in (model, average):
        layer(draw(layer))
    mask = average.mask
    for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if a.dtype == torch.uint8:
            a.copy_(a * 0.9 + b * 0.1)
    assert torch.equal(average.mask, mask)


def test_another_interval_may_be_loaded():
    saved = make_layer("held")
    trained(saved, 2)
    for refresh_every in (1, 2, 5):
        layer = make_layer("held", seed=1, refresh_every=refresh_every)
        state = saved.state_dict()
        if refresh_every > 1:
            layer.load_state_dict(state)
        else:
            assert layer.load_state_dict(state) == ([], [])
        expected = saved.mask if refresh_every == 5 else saved.eval().mask
        assert torch.equal(layer.mask, expected)
        saved.train()


def test_weights_alone_choose_a_mask_anew(dense):
    layer, module = make_layer("held"), nn.Linear(16, 12)
    layer(draw(layer))
    with pytest.raises(RuntimeError, match=r'Missing key.*"metadata", "age"'):
        layer.load_state_dict(module.state_dict())
    assert layer.load_state_dict(module.state_dict(), strict=False).missing_keys == ["metadata", "age"]
    assert torch.equal(layer.mask, dense.masks[False](module.weight))


def put(name, value):
    return lambda state: state.update({name: value})


def drop(name):
    return lambda state: state.pop(name)


def corrupt(state):
    state["metadata"] = state["metadata"].clone()
    state["metadata"][3, 0] = 0


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.parametrize(
    ("form", "edit", "message"),
    [
        ("fixed", drop("metadata"), "metadata must come with the values"),
        ("fixed", drop("values"), "values must be there: a mask is loaded with its weight"),
        ("held", drop("weight"), "weight must be there: a mask is loaded with its weight"),
        ("fixed", put("values", torch.ones(3)), r"values must have shape \(12, 8\), got .*\(3,\)"),
        ("fixed", put("bias", torch.ones(3)), r"bias must have shape \(12,\), got .*\(3,\)"),
        ("held", put("weight", torch.ones(12, 8)), r"weight must have shape \(12, 16\), got .*\(12, 8\)"),
        (
            "fixed",
            put("metadata", torch.ones(12, 2)),
            r"metadata must be a uint8 .*\(12, 2\).* got a torch.f",
        ),
        (
            "fixed",
            put("metadata", torch.ones(12, 3).byte()),
            r"metadata must be .*\(12, 2\).* got .*\(12, 3\)",
        ),
        ("held", put("metadata", "x"), "metadata must be a uint8 tensor .*got 'x'"),
        ("fixed", put("metadata", torch.ones(12, 2).byte().to("meta")), "metadata must .*with contents"),
        ("fixed", corrupt, "metadata must have two ascending columns .* got 0 and 0 in row 3, group 0"),
        ("held", corrupt, "metadata must have two ascending columns .* got 0 and 0 in row 3, group 0"),
        (
            "held, transposable",
            put("metadata", torch.full((12, 2), 0x44, dtype=torch.uint8)),
            "metadata must have two of every 4 neighbours in a column too",
        ),
        ("held", put("age", torch.tensor(1.0)), "age must be an int64 tensor .*got a torch.float32"),
        ("held", put("age", torch.tensor(-1)), "age must be an int64 tensor .*at least 0, got -1"),
        ("held", put("age", torch.zeros(2).long()), r"age must be an int64 tensor .*\(2,\)"),
        ("held", put("age", 3), "age must be an int64 tensor .*got 3"),
        ("fixed", put("weight", torch.ones(12, 16)), "values must be there, got the dense weight"),
        (
            "every step",
            put("values", torch.ones(12, 8)),
            "weight must be there, got a layer saved with method='fixed'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_state_dict_changes_nothing(form, edit, message, strict):
    state = make_layer(form).state_dict()
    edit(state)
    layer = make_layer(form, seed=1)
    layer(draw(layer))
    before, mask = copy.deepcopy(layer.state_dict()), layer.mask
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state, strict=strict)
    assert torch.equal(layer.mask, mask)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_unexpected_keys_are_still_reported():
    state = {**make_layer("fixed").state_dict(), "extra": torch.ones(1)}
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"extra"'):
        make_layer("fixed", seed=1).load_state_dict(state)


def test_a_weight_that_is_not_finite_can_be_saved_and_loaded():
    layer = make_layer("held")
    layer(draw(layer))
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    other = make_layer("held", seed=1)
    other.load_state_dict(layer.state_dict())
    assert other.weight[0, 0].isnan()
