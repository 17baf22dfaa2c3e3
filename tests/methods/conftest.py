"""What the methods' tests share: an update in plain PyTorch, and small models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import SparseLayer


def as_matrix(weight):
    """The weight as a matrix, a convolution's columns in (kh, kw, cin) order."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def from_matrix(matrix, shape):
    return matrix if len(shape) == 2 else matrix.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


def exchange(weight, mask, scores, fraction, regrow=True):
    """The mask after an update: all by stable sorts of dense tensors in matrix order."""
    shape = weight.shape
    weight, active, scores = (as_matrix(t).flatten() for t in (weight, mask, scores))
    places = active.nonzero().flatten()
    count = int(len(places) * fraction)
    if not regrow:
        count = min(count, int((~active).sum()))
    dropped = places[weight[places].abs().sort(stable=True).indices[:count]]
    kept = active.clone()
    kept[dropped] = False
    free = (~(kept if regrow else active)).nonzero().flatten()
    kept[free[scores[free].sort(stable=True, descending=True).indices[:count]]] = True
    return from_matrix(kept.view(shape[0], -1), shape)


class DenseEmulation:
    """The same training with dense weights and masks, as other libraries do it: the oracle for whole runs."""

    def __init__(self, sparse, make_optimizer, every, fraction, score=torch.Tensor.abs, regrow=True):
        self.model = _dense_copy(sparse)
        self.masks = {n: m.mask for n, m in sparse.named_modules() if isinstance(m, SparseLayer)}
        self.optimizer = make_optimizer(self.model.parameters())
        self.every, self.fraction, self.score, self.regrow = every, fraction, score, regrow
        self.steps = 0

    def step(self, *losses):
        self.optimizer.zero_grad()
        for loss in losses:
            loss(self.model).backward()
        dense = {}
        for name, mask in self.masks.items():
            weight = self.model.get_submodule(name).weight
            dense[name] = weight.grad.clone()
            weight.grad.mul_(mask)
        self.optimizer.step()
        self.steps += 1
        if self.steps % self.every == 0:
            self._update(dense)

    @torch.no_grad()
    def _update(self, dense):
        for name, mask in self.masks.items():
            weight = self.model.get_submodule(name).weight
            new = exchange(weight, mask, self.score(dense[name]), self.fraction, self.regrow)
            self.masks[name] = new
            # New positions are 0 already, in the weight and in all that follows it; dropped ones become 0.
            for tensor in [weight, *self.optimizer.state[weight].values()]:
                if isinstance(tensor, torch.Tensor) and tensor.shape == weight.shape:
                    tensor.mul_(new)


def _dense_copy(sparse):
    dense = copy.deepcopy(sparse)
    sk.densify_(dense)
    return dense


def network(storage="compact", dtype=torch.float64, seed=0, sparsity=0.8):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.Conv2d(6, 8, (3, 2), groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8 * 2 * 3, 33),
        nn.Tanh(),
        nn.Linear(33, 5),
    ).to(dtype)
    sk.sparsify_(model, sparsity=sparsity, init="per_neuron", storage=storage)
    return model


def batch(seed, samples=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 2, 8, 8, generator=generator, dtype=dtype)
    return images, torch.randint(5, (samples,), generator=generator)


def loss_on(seed, scale=1.0, **keywords):
    images, labels = batch(seed, **keywords)
    return lambda model: scale * nn.functional.cross_entropy(model(images), labels)


@pytest.fixture(name="exchange")
def exchange_fixture():
    return exchange


@pytest.fixture
def emulation():
    return DenseEmulation


@pytest.fixture(name="network")
def network_fixture():
    return network


@pytest.fixture(name="loss_on")
def loss_on_fixture():
    return loss_on


@pytest.fixture
def train():
    """Train for some steps on batches of their own, each in one part or more."""

    def run(model, optimizer, steps, first=0, parts=1):
        for step in range(first, first + steps):
            optimizer.zero_grad()
            for part in range(parts):
                loss_on(parts * step + part, scale=1 / parts)(model).backward()
            optimizer.step()

    return run
