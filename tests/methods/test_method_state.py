"""A method's state: exact resumption, through the optimizer's state dict or its own, and what is refused."""

from __future__ import annotations

import io
import re

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.methods.schedules import drop_fraction
from sparsekern.nn import SparseLayer

METHODS = ["Static", "SET", "RigL", "RigLInverted", "SNFS"]


def make(network, method, **options):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    keywords = {"update_every": 3, "stop_at": 20, "seed": 7, **options}
    return model, optimizer, getattr(sk, method)(model, optimizer, **keywords)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same(mine, theirs):
    for a, b in zip(mine.modules(), theirs.modules(), strict=True):
        if isinstance(a, SparseLayer):
            assert torch.equal(a.mask, b.mask)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("explicit", [False, True], ids=["in the optimizer's", "its own"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("stop", [2, 3, 4], ids=["before an update", "at an update", "after an update"])
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_one_that_was_never_stopped(name, stop, parts, explicit, network, train):
    whole, optimizer, method = make(network, name)
    train(whole, optimizer, 11, parts=parts)

    first, first_optimizer, first_method = make(network, name)
    train(first, first_optimizer, stop, parts=parts)
    optimizer_state = first_optimizer.state_dict()
    if explicit:
        optimizer_state.pop("sparsekern")
    state = through_a_file([first.state_dict(), optimizer_state, first_method.state_dict()])

    torch.manual_seed(123)
    resumed, resumed_optimizer, resumed_method = make(lambda: network(seed=5), name)
    resumed.load_state_dict(state[0])
    if explicit:
        with pytest.warns(UserWarning, match=f"none of {name}"):
            resumed_optimizer.load_state_dict(state[1])
        resumed_method.load_state_dict(state[2])
    else:
        resumed_optimizer.load_state_dict(state[1])
    train(resumed, resumed_optimizer, 11 - stop, first=stop, parts=parts)
    assert_same(resumed, whole)
    assert resumed_method.steps == method.steps == 11
    assert resumed_method.updates == method.updates == (0 if name == "Static" else 3)
    if method.last_update is not None:
        assert resumed_method.last_update.exploration_rate == method.last_update.exploration_rate


def test_two_methods_on_one_optimizer_keep_their_states_apart(network, train):
    def both():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        rigl = sk.RigL(model, optimizer, update_every=3, exclude=["5", "7"])
        return model, optimizer, rigl, sk.SET(model, optimizer, update_every=2, exclude=["0", "2"])

    model, optimizer, rigl, random = both()
    train(model, optimizer, 5)
    other, other_optimizer, other_rigl, other_random = both()
    other.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(optimizer.state_dict())
    assert (other_rigl.updates, other_random.updates) == (rigl.updates, random.updates) == (1, 2)
    assert (other_rigl.next_update, other_random.next_update) == (6, 6)


def test_two_models_of_one_form_on_one_optimizer_keep_their_states_apart(network, loss_on):
    def both():
        models = [network(seed=seed) for seed in range(2)]
        optimizer = torch.optim.SGD([p for model in models for p in model.parameters()], 0.1)
        return models, optimizer, [sk.SET(m, optimizer, update_every=2, seed=i) for i, m in enumerate(models)]

    models, optimizer, methods = both()
    for step in range(5):
        optimizer.zero_grad()
        sum(loss_on(step)(model) for model in models).backward()
        optimizer.step()
    _, other_optimizer, others = both()
    state = optimizer.state_dict()
    other_optimizer.load_state_dict(state)
    assert len(state["sparsekern"]) == 2
    for method, other in zip(methods, others):
        assert (other.steps, other.updates) == (5, 2)
        for name, layer in method.state_dict()["layers"].items():
            assert torch.equal(layer["explored"], other.state_dict()["layers"][name]["explored"])


def test_a_state_loaded_between_backward_pass_and_step_decides_the_next_drop_fraction(
    network, loss_on, train
):
    model, optimizer, method = make(network, "RigL", update_every=2)
    train(model, optimizer, 1)
    state = method.state_dict()
    train(model, optimizer, 16, first=1)
    loss_on(17)(model).backward()
    method.load_state_dict(state)
    train(model, optimizer, 1, first=1)
    assert method.steps == 2
    expected = drop_fraction("cosine", method.options.drop_fraction, 2, 20)
    for layer in method.last_update.layers.values():
        assert layer.drop_fraction == pytest.approx(expected)


WRONG = {
    "no state": (lambda s: [], "state must be that of a RigL, got [] (list)"),
    "other method": (lambda s: {**s, "method": "SET"}, "state must have method 'RigL', got 'SET'"),
    "other version": (lambda s: {**s, "version": 9}, "state must have version 1, got 9"),
    "other options": (
        lambda s: {**s, "options": {**s["options"], "seed": 8}},
        "state must be of a method with seed=7, got seed=8",
    ),
    "a key too many": (lambda s: {**s, "more": 1}, "state must have the keys method"),
    "steps": (
        lambda s: {**s, "steps": "4"},
        "state['steps'] must be an integer of at least 0, got '4' (str)",
    ),
    "steps -1": (lambda s: {**s, "steps": -1}, "state['steps'] must be an integer of at least 0, got -1"),
    "next update -2": (
        lambda s: {**s, "next_update": -2},
        "state['next_update'] must be an integer of at least -1, got -2",
    ),
    "other layers": (
        lambda s: {**s, "layers": {"fc": s["layers"]["0"]}},
        "state must be of a model with the sparse layers 0, 2, 5, 7, got fc",
    ),
    "other shape": (
        lambda s: {**s, "layers": {**s["layers"], "5": {**s["layers"]["5"], "shape": [3, 3]}}},
        "state of layer '5' must have shape [33, 48], got [3, 3]",
    ),
    "other nnz": (
        lambda s: {**s, "layers": {**s["layers"], "5": {**s["layers"]["5"], "nnz": 3}}},
        "state of layer '5' must have nnz 317, got 3",
    ),
    "short bits": (
        lambda s: {**s, "layers": {**s["layers"], "5": {**s["layers"]["5"], "explored": torch.zeros(2)}}},
        "state of layer '5' must have explored of",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_state_is_refused_and_nothing_changes(wrong, network, train):
    model, optimizer, method = make(network, "RigL")
    train(model, optimizer, 4)
    before = method.state_dict()
    change, message = WRONG[wrong]
    with pytest.raises(ValueError, match=re.escape(message)):
        method.load_state_dict(change(method.state_dict()))
    after = method.state_dict()
    assert {k: v for k, v in after.items() if k != "layers"} == {
        k: v for k, v in before.items() if k != "layers"
    }
    for name, layer in before["layers"].items():
        assert torch.equal(layer["explored"], after["layers"][name]["explored"])


def test_a_model_loaded_while_attached_goes_on_with_its_pattern(network, train):
    model, optimizer, method = make(network, "RigL")
    train(model, optimizer, 2)
    other, *_ = make(lambda: network(seed=5), "RigL")
    model.load_state_dict(other.state_dict())
    mask = model[5].mask
    train(model, optimizer, 1, first=2)
    assert method.updates == 1
    assert not torch.equal(model[5].mask, mask)


def test_parameters_made_anew_are_noticed(network, train):
    model, optimizer, _ = make(network, "RigL")
    train(model, optimizer, 1)
    model.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(RuntimeError, match=r"layer '0' has another Parameter than the one in the optimizer"):
        train(model, optimizer, 2, first=1)


def test_a_copy_of_the_model_is_on_its_own(network, train):
    import copy

    model, optimizer, method = make(network, "RigL")
    train(model, optimizer, 1)
    twin = copy.deepcopy(model)
    before = [layer.pattern for layer in twin.modules() if isinstance(layer, SparseLayer)]
    nn.functional.mse_loss(twin(torch.randn(2, 2, 8, 8).double()), torch.zeros(2, 5).double()).backward()
    train(model, optimizer, 2, first=1)
    assert method.updates == 1
    assert [layer.passes for layer in method.layers] == [1] * 4
    assert [layer.pattern for layer in twin.modules() if isinstance(layer, SparseLayer)] == before


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ["SET", "RigL", "RigLInverted"])
def test_a_gradient_on_another_pattern_than_the_loaded_one_moves_nothing(
    name, parts, network, loss_on, train
):
    model, optimizer, method = make(network, name)
    train(model, optimizer, 2, parts=parts)
    other, *_ = make(lambda: network(seed=5), name)
    optimizer.zero_grad()
    for part in range(parts):
        loss_on(part)(model).backward()
    model.load_state_dict(other.state_dict())
    optimizer.step()
    assert method.updates == 1
    for mine, theirs in zip(model.modules(), other.modules()):
        if isinstance(mine, SparseLayer):
            assert mine.pattern.nnz == theirs.pattern.nnz
            assert (mine.pattern == theirs.pattern) == (name != "SET")


def test_an_optimizer_state_that_does_not_fit_leaves_the_method_as_it_is(network, train):
    model, optimizer, method = make(network, "RigL")
    train(model, optimizer, 4)
    _, other_optimizer, other = make(network, "RigL")
    state = optimizer.state_dict()
    state["param_groups"].append(state["param_groups"][0])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        other_optimizer.load_state_dict(state)
    assert (other.steps, other.updates, other.next_update) == (0, 0, 3)
    assert method.steps == 4
