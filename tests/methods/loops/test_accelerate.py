"""Accelerate wraps an optimizer in one without hooks; a method takes the one inside."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

import sparsekern as sk

STEPS, EVERY = 20, 5


def start(wrapped, seed=0, accumulate=1):
    """The accelerator, model, optimizer and method."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(19, 23), nn.Tanh(), nn.Linear(23, 6)).double()
    sk.sparsify_(model, sparsity=0.8, init="per_neuron")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    if wrapped:
        model, optimizer = accelerator.prepare(model, optimizer)
    return accelerator, model, optimizer, sk.RigL(model, optimizer, update_every=EVERY)


def loss(model, step, part=slice(None)):
    generator = torch.Generator().manual_seed(step)
    return model(torch.randn(8, 19, generator=generator, dtype=torch.float64)[part]).square().mean()


def assert_equal(one, other):
    for key, tensor in other.items():
        assert torch.equal(one[key], tensor), key


def test_prepared_optimizer_accumulates_clips_and_resumes(tmp_path):
    _, expected, plain, moved = start(False)
    for step in range(STEPS):
        for part in (slice(0, 4), slice(4, 8)):
            (loss(expected, step, part) / 2).backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 0.1)
        plain.step()
        plain.zero_grad()

    def train(accelerator, model, optimizer, steps):
        for step in steps:
            for part in (slice(0, 4), slice(4, 8)):
                with accelerator.accumulate(model):
                    accelerator.backward(loss(model, step, part))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.1)
                    optimizer.step()
                    optimizer.zero_grad()

    accelerator, model, optimizer, method = start(True, accumulate=2)
    assert method.optimizer is optimizer.optimizer
    train(accelerator, model, optimizer, range(STEPS // 2))
    accelerator.save_state(tmp_path)
    train(accelerator, model, optimizer, range(STEPS // 2, STEPS))
    assert (method.steps, method.updates) == (moved.steps, moved.updates) == (STEPS, 4)
    assert_equal(model.state_dict(), expected.state_dict())

    accelerator, model, optimizer, again = start(True, seed=5, accumulate=2)
    accelerator.load_state(tmp_path)
    train(accelerator, model, optimizer, range(STEPS // 2, STEPS))
    assert (again.steps, again.updates) == (STEPS, 4)
    assert_equal(model.state_dict(), expected.state_dict())


@pytest.mark.parametrize("attach", [sk.RigL, sk.GradualPruning], ids=["dynamic", "pruning"])
def test_optimizer_of_lightning(attach):
    model = nn.Sequential(nn.Linear(19, 23))
    sk.sparsify_(model, sparsity=0.5, storage="masked")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {} if attach is sk.RigL else {"sparsity": 0.8, "begin": 1, "end": 2}
    assert attach(model, LightningOptimizer(optimizer), **options).optimizer is optimizer
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got 3"):
        attach(model, 3, **options)
