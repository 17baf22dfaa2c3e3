"""Steps that a GradScaler leaves out are no steps, whether the optimizer is called or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsekern as sk

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "sgd_fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adam_fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
}
METHODS = {"RigL": sk.RigL, "RigLInverted": sk.RigLInverted, "SET": sk.SET}
# Two before an update is due, and all that follow until one that would come with it.
OVERFLOWS = {1, 5, 6, 12}
STEPS, EVERY = 20, 4


def start(method, optimizer, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(19, 23), nn.Tanh(), nn.Linear(23, 6)).double()
    sk.sparsify_(model, sparsity=0.8, init="per_neuron")
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    return model, optimizer, METHODS[method](model, optimizer, update_every=EVERY, **options)


def loss(model, step, part):
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(8, 19, generator=generator, dtype=torch.float64)
    return model(x.chunk(2)[part]).square().mean()


def scaled(method, optimizer, set_to_none, overflow, **options):
    model, optimizer, method = start(method, optimizer, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for step in range(STEPS):
        for part in (0, 1):
            scaler.scale(loss(model, step, part)).backward()
        if step in OVERFLOWS:
            overflow(model)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=set_to_none)
    return model, method


def plain(method, optimizer, **options):
    """Without the batches whose gradients overflow."""
    model, optimizer, method = start(method, optimizer, **options)
    for step in sorted(set(range(STEPS)) - OVERFLOWS):
        for part in (0, 1):
            loss(model, step, part).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, method


def in_the_bias(model):
    model[2].bias.grad[0] = torch.inf


def in_the_weight(model):
    model[0].values.grad.fill_(torch.nan)


@pytest.mark.parametrize("overflow", [in_the_bias, in_the_weight])
@pytest.mark.parametrize("set_to_none", [True, False], ids=["grads_to_none", "grads_to_zero"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_only_steps_that_are_taken_count(method, optimizer, set_to_none, overflow):
    model, moved = scaled(method, optimizer, set_to_none, overflow)
    expected, other = plain(method, optimizer)
    assert (moved.steps, moved.updates) == (other.steps, other.updates) == (STEPS - 4, 4)
    assert moved.last_update.grown == other.last_update.grown > 0
    for layer, same in zip(moved.layers, other.layers):
        assert layer.pattern == same.pattern
        assert torch.equal(layer.explored.words, same.explored.words)
    # A scale is a power of two, but a fused kernel may round in another order.
    torch.testing.assert_close(dict(model.named_parameters()), dict(expected.named_parameters()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_update_in_place_of_a_step(optimizer):
    options = {"update": "replaces_step"}
    model, moved = scaled("RigL", optimizer, True, in_the_bias, **options)
    expected, other = plain("RigL", optimizer, **options)
    assert (moved.steps, moved.updates) == (other.steps, other.updates) == (STEPS - 4, 4)
    for layer, same in zip(moved.layers, other.layers):
        assert layer.pattern == same.pattern
    torch.testing.assert_close(dict(model.named_parameters()), dict(expected.named_parameters()))


@pytest.mark.parametrize("overflow", [in_the_bias, in_the_weight])
def test_a_running_mean_is_that_of_the_steps_that_are_taken(overflow):
    means = []
    for optimizer in ("sgd", "sgd_fused"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(19, 23), nn.Tanh(), nn.Linear(23, 6)).double()
        sk.sparsify_(model, sparsity=0.8, init="per_neuron")
        optimizer = OPTIMIZERS[optimizer](model.parameters())
        method = sk.SNFS(model, optimizer, update_every=EVERY)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(loss(model, step, 0)).backward()
            if step in OVERFLOWS:
                overflow(model)
            scaler.step(optimizer)
            scaler.update()
        assert method.steps == 2
        means.append([layer.memory["mean_gradient"] for layer in method.layers])
    for called, never_called in zip(*means):
        torch.testing.assert_close(called, never_called)
