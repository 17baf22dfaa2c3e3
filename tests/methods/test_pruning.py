"""`prune_`: training goes on as plain PyTorch does that multiplies the dense weight by the mask."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.methods import magnitude_masks

NAMES = ["0", "3", "5"]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 11), nn.Tanh(), nn.Linear(11, 5)
    ).double()


def step(model, optimizer, index, masks=None):
    """One step; with masks, the dense oracle's: weights, gradients and momenta are 0 where pruned."""
    generator = torch.Generator().manual_seed(index)
    images = torch.randn(9, 2, 6, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (9,), generator=generator)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    for name, mask in (masks or {}).items():
        model.get_submodule(name).weight.grad.mul_(mask)
    optimizer.step()


def clear(model, optimizer, masks):
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        with torch.no_grad():
            for tensor in (weight, *optimizer.state[weight].values()):
                if tensor.dim():
                    tensor.mul_(mask)


def dense_weights(model):
    layers = {name: model.get_submodule(name) for name in NAMES}
    return {
        name: (layer.weight if isinstance(layer, (nn.Linear, nn.Conv2d)) else layer.to_dense())
        .detach()
        .clone()
        for name, layer in layers.items()
    }


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("start", ["dense", "compact", "masked"])
def test_training_goes_on_exactly(kind, again, start):
    oracle = network()
    model = copy.deepcopy(oracle)
    masks = {}
    if start != "dense":
        masks = magnitude_masks(oracle, 0.3, exclude=["5"])
        sk.sparsify_(model, masks=masks, storage=start)
    ours, theirs = (OPTIMIZERS[kind](m.parameters()) for m in (model, oracle))
    clear(oracle, theirs, masks)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2) for o in (ours, theirs)]
    index = 0
    for sparsity in (0.6, 0.85) if again else (0.6,):
        for _ in range(3):
            index += 1
            step(model, ours, index)
            step(oracle, theirs, index, masks)
        weights = dense_weights(model)
        sk.prune_(model, sparsity, ours)
        masks = magnitude_masks(model, sparsity)
        clear(oracle, theirs, masks)
        for name, mask in masks.items():
            layer = model.get_submodule(name)
            assert layer.storage == "compact"
            assert torch.equal(layer.to_dense(), weights[name] * mask)
    for _ in range(3):
        index += 1
        step(model, ours, index)
        step(oracle, theirs, index, masks)
        for scheduler in schedulers:
            scheduler.step()
    for name in NAMES:
        layer, weight = model.get_submodule(name), oracle.get_submodule(name).weight
        torch.testing.assert_close(layer.to_dense(), weight, rtol=1e-10, atol=1e-13)
        for key, value in ours.state[layer.values].items():
            other = theirs.state[weight][key]
            if value.dim():
                assert value.shape == (layer.pattern.nnz,)
                other = layer.pattern.pack(other)
            torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(model[5].bias, oracle[5].bias, rtol=1e-10, atol=1e-13)
    assert {id(p) for g in ours.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_state_of_what_stays_is_the_same_bits(scope):
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    step(model, optimizer, 1)
    before = {name: copy.deepcopy(optimizer.state[model.get_submodule(name).weight]) for name in NAMES}
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in NAMES}
    grads = {name: model.get_submodule(name).weight.grad.clone() for name in NAMES}
    masks = magnitude_masks(model, 0.8, scope=scope)
    bias = model[0].bias
    sk.prune_(model, 0.8, optimizer, scope=scope)
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        assert torch.equal(layer.mask, mask)
        assert torch.equal(layer.to_dense(), weights[name] * mask)
        assert torch.equal(layer.values.grad, layer.pattern.pack(grads[name]))
        for key, value in optimizer.state[layer.values].items():
            assert torch.equal(
                value, layer.pattern.pack(before[name][key]) if value.dim() else before[name][key]
            )
    assert model[0].bias is bias
    assert bias in optimizer.state


def test_groups_keep_their_parameters_places():
    model = network()
    optimizer = torch.optim.SGD(
        [{"params": [model[0].weight, model[5].bias], "lr": 1.0}, {"params": [model[3].weight]}], 0.1
    )
    sk.prune_(model, 0.5, optimizer)
    assert optimizer.param_groups[0]["params"][0] is model[0].values
    assert optimizer.param_groups[0]["params"][1] is model[5].bias
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(model[3].values)]


@pytest.mark.parametrize("storage", ["dense", "compact", "masked"])
def test_shared_weights_go_on_sharing(storage):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    model[1].weight = model[0].weight
    if storage != "dense":
        sk.sparsify_(model, masks={"0": torch.ones(6, 6, dtype=torch.bool)}, storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    report = sk.prune_(model, 0.5, optimizer)
    assert model[1].values is model[0].values
    assert model[0].pattern.nnz == 18
    assert [layer.tied_to for layer in report.layers] == [None, "0", None]
    assert (report.nnz, report.numel) == (27, 54)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters())) == 5
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()


def test_excluded_layers_stay_as_they_are():
    model = network()
    sk.sparsify_(model, masks={"3": torch.rand(11, 96) < 0.5}, storage="masked")
    pattern, weight = model[3].pattern, model[0].weight
    report = sk.prune_(model, 0.5, exclude=["0", "3"])
    assert model[3].storage == "masked"
    assert model[3].pattern == pattern
    assert model[0].weight is weight
    assert [layer.name for layer in report.layers] == ["5"]


def test_the_report_is_a_table():
    model = network()
    sk.sparsify_(model, sparsity=0.2)
    text = str(sk.prune_(model, 0.9))
    assert "sparsity 0.8999, 122 of 1,219 weights" in text


def test_a_layer_that_would_be_emptied_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.constant_(model[0].weight, 0.1)
    nn.init.constant_(model[1].weight, 0.2)
    with pytest.warns(UserWarning, match="takes every weight of '0'"):
        sk.prune_(model, 0.75, scope="global")
    assert [layer.pattern.nnz for layer in model] == [1, 7]


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (OPTIMIZERS["sgd"], (1.5,), ValueError, "sparsity must be in"),
        (torch.optim.Adafactor, (0.5,), TypeError, "optimizer must not be Adafactor for layer '0'"),
        (torch.optim.LBFGS, (0.5,), TypeError, "optimizer must keep its state per weight"),
        (lambda p: None, (0.5, 3), TypeError, r"optimizer must be a torch.optim.Optimizer or None, got 3"),
    ],
    ids=["sparsity", "adafactor", "lbfgs", "number"],
)
def test_errors_come_before_changes(make, arguments, error, message):
    model = network()
    optimizer = make(model.parameters())
    before = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(error, match=message):
        sk.prune_(model, *(arguments if len(arguments) > 1 else (*arguments, optimizer)))
    assert [(name, id(module)) for name, module in model.named_modules()] == before


def test_layers_that_a_method_moves_are_refused():
    model = network()
    sk.sparsify_(model, sparsity=0.5)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method = sk.RigL(model, optimizer)
    with pytest.raises(
        ValueError, match="no layer that a method moves, got '0', which RigL moves: call its detach"
    ):
        sk.prune_(model, 0.8, optimizer)
    method.detach()
    assert sk.prune_(model, 0.8, optimizer).sparsity == pytest.approx(0.8, abs=1e-3)


def test_an_optimizer_of_other_weights_is_refused():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    before = list(model.parameters())
    with pytest.raises(
        ValueError, match=r"optimizer must hold weights of the model, such as that of layer '0'"
    ):
        sk.prune_(model, 0.5, torch.optim.SGD(nn.Linear(3, 3).parameters(), 0.1))
    assert all(mine is old for mine, old in zip(model.parameters(), before, strict=True))
