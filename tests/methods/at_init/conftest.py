"""What the tests of pruning at initialization share: a small dense network, and all that must not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn


def dense_network(dtype=torch.float64, seed=0, activation=nn.Tanh, norm=False):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, stride=2),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        activation(),
        nn.Conv2d(6, 8, (3, 2), groups=2),
        activation(),
        nn.Flatten(),
        nn.Dropout(0.5 if norm else 0.0),
        nn.Linear(8 * 2 * 3, 11),
        activation(),
        nn.Linear(11, 5),
    ).to(dtype)


def batch(dtype=torch.float64, seed=1, samples=7):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 2, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(5, (samples,), generator=generator)


def loss_of(model, dtype=torch.float64, **keywords):
    images, labels = batch(dtype, **keywords)
    return lambda: nn.functional.cross_entropy(model(images), labels)


class Snapshot:
    """All of a model's state and torch's generator, to be compared with what it is later, bit for bit."""

    def __init__(self, model):
        self.model = model
        self.before = self._taken()

    def _taken(self):
        model = self.model
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return {
            "objects": [(name, id(tensor), tensor.data_ptr()) for name, tensor in tensors],
            "contents": [tensor.detach().clone() for _, tensor in tensors],
            "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "requires_grad": [tensor.requires_grad for _, tensor in tensors],
            "training": [module.training for module in model.modules()],
            "buffers": [list(module._buffers) for module in model.modules()],
            "generator": torch.get_rng_state(),
            "grad_enabled": torch.is_grad_enabled(),
        }

    def check(self):
        after = self._taken()
        for what, expected in self.before.items():
            assert _same(after[what], expected), f"{what} changed"


def _same(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        return isinstance(ours, torch.Tensor) and all(
            torch.equal(f(ours), f(theirs)) for f in (torch.isnan, torch.nan_to_num, torch.signbit)
        )
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return ours == theirs


@pytest.fixture(name="dense_network")
def dense_network_fixture():
    return dense_network


@pytest.fixture(name="loss_of")
def loss_of_fixture():
    return loss_of


@pytest.fixture
def snapshot():
    return Snapshot
