"""Snapshots and rewinding: values of another time, exactly, under masks found later."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.methods import magnitude_masks, rewind_, snapshot

NAMES = ["0", "4", "5"]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 11), nn.Linear(11, 5)
    )


def train(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for index in range(steps):
        images = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(index))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(8) % 5).backward()
        optimizer.step()
    return model


def dense(model):
    """The dense model's state dict, by way of `densify_`."""
    sk.densify_(model)
    return model.state_dict()


def equal(ours, theirs):
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("storage", ["dense", "compact", "masked"])
def test_a_snapshot_is_the_dense_state_dict_at_its_time(storage):
    model = network()
    if storage != "dense":
        sk.sparsify_(model, sparsity=0.6, storage=storage, exclude=["5"])
    train(model)
    state = snapshot(model)
    assert all(value.device.type == "cpu" for value in state.values())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    masks = sk.methods.masks_of(model)
    # Keys in the order of the model's own, where densify_ has the weight first.
    expected = {key: value.clone() for key, value in dense(model).items()}
    assert set(state) == set(expected)
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    train(model)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    for name, mask in masks.items():
        assert not state[f"{name}.weight"][~mask.to_mask()].any()


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("start", ["dense", "compact", "masked"])
def test_rewinding_gives_the_values_of_step_k_under_the_masks(start, storage):
    model = train(network(), 2)
    state = snapshot(model)
    train(model)
    masks = magnitude_masks(model, 0.7, exclude=["5"])
    if start != "dense":
        sk.sparsify_(model, masks=magnitude_masks(model, 0.4, exclude=["5"]), storage=start)
        train(model)
    biases = {name: model.get_submodule(name).bias for name in NAMES}
    rewind_(model, state, masks, storage=storage)
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        assert layer.storage == (storage if start == "dense" else start)
        assert torch.equal(layer.mask, mask)
        assert layer.pattern.nnz == int(mask.sum())
        assert layer.stored_weight.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(model.get_submodule(name).bias is bias for name, bias in biases.items())
    found = dense(model)
    assert set(found) == set(state)
    for key, value in found.items():
        mask = masks.get(key.removesuffix(".weight"))
        assert torch.equal(value, state[key] if mask is None else state[key] * mask)


def test_a_rewound_ticket_trains_as_one_that_was_made_so():
    model = network()
    state = snapshot(model)
    masks = magnitude_masks(train(model), 0.7)
    rewind_(model, state, masks)
    other = network()
    sk.sparsify_(other, masks=masks)
    assert equal(snapshot(train(model)), snapshot(train(other)))


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_without_masks_the_model_keeps_its_own(storage):
    model = network()
    state = snapshot(model)
    sk.sparsify_(model, sparsity=0.5, storage=storage)
    parameters = list(model.parameters())
    patterns = [model.get_submodule(name).pattern for name in NAMES]
    train(model)
    rewind_(model, state)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert [model.get_submodule(name).pattern for name in NAMES] == patterns
    for name, pattern in zip(NAMES, patterns):
        assert torch.equal(model.get_submodule(name).to_dense(), state[f"{name}.weight"] * pattern.to_mask())


def test_masks_of_gradual_pruning_with_the_weights_of_before():
    model = network()
    state = snapshot(model)
    sk.sparsify_(model, sparsity=0, storage="masked", init="keep")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sk.GradualPruning(model, optimizer, sparsity=0.8, begin=1, end=4, update_every=1)
    for index in range(4):
        images = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(index))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
    masks = sk.methods.masks_of(model)
    rewind_(model, state, masks)
    for name in NAMES:
        layer = model.get_submodule(name)
        assert layer.pattern == masks[name]
        assert torch.equal(layer.to_dense(), state[f"{name}.weight"] * masks[name].to_mask())


def test_shared_weights():
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        model[1].weight = model[0].weight
        return model

    model = make()
    state = snapshot(model)
    mask = torch.rand(6, 6) < 0.5
    rewind_(model, state, {"0": mask})
    assert model[0].values is model[1].values
    rewind_(model, state, {"1": ~mask})
    assert torch.equal(model[0].to_dense(), state["0.weight"] * ~mask)
    with pytest.raises(
        ValueError, match=r"masks must be the same for '[01]' and '[01]', which share a weight"
    ):
        rewind_(model, state, {"0": mask, "1": ~mask})


def broken(state, **changes):
    return {**state, **changes}


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda s: 3, {}, TypeError, "state must be the state dict of the dense model, got 3"),
        (lambda s: broken(s, x=1), {}, ValueError, "state must have the keys .*, got 'x', which it has not"),
        (lambda s: {k: s[k] for k in list(s)[1:]}, {}, ValueError, r"state must .*, got none of '0\.weight'"),
        (
            lambda s: broken(s, **{"5.bias": torch.ones(4)}),
            {},
            ValueError,
            r"state\['5\.bias'\] must be a tensor of shape \(5,\), got a .* of shape \(4,\)",
        ),
        (lambda s: s, {"masks": 3}, TypeError, "masks must be a mapping from layer name to mask, got 3"),
        (
            lambda s: s,
            {"masks": {"0": torch.ones(3).bool()}},
            ValueError,
            r"masks\['0'\] must have the weight",
        ),
        (
            lambda s: s,
            {"masks": {"7": torch.ones(3).bool()}},
            ValueError,
            "masks must be for names of layers",
        ),
        (lambda s: s, {"masks": {}, "storage": "x"}, ValueError, "storage must be 'compact' or 'masked'"),
    ],
    ids=["number", "another", "missing", "shape", "masks", "mask", "layer", "storage"],
)
def test_errors_come_before_changes(change, options, error, message):
    model = network()
    state = snapshot(model)
    train(model)
    sk.sparsify_(model, masks=magnitude_masks(model, 0.5, exclude=["5"]))
    before = snapshot(model)
    given = {"masks": {"5": torch.ones(5, 11).bool(), "4": torch.ones(11, 96).bool()}, **options}
    if isinstance(given["masks"], dict) and options.get("masks"):
        given["masks"] = {"5": torch.ones(5, 11).bool(), **given["masks"]}
    with pytest.raises(error, match=message):
        rewind_(model, change(state), **given)
    assert equal(snapshot(model), before)
    assert isinstance(model[5], nn.Linear)


def test_layers_that_a_method_moves_are_refused():
    model = network()
    state = snapshot(model)
    sk.sparsify_(model, sparsity=0.5)
    method = sk.SET(model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match="no layer that a method moves, got '0', which SET moves"):
        rewind_(model, state, {"0": torch.ones(6, 2, 3, 3).bool()})
    method.detach()
    rewind_(model, state, {"0": torch.ones(6, 2, 3, 3).bool()})
