"""What the layers' tests share, as fixtures that are functions: layers and models from a seed, checks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.nn.base import SparseLayer

LAYERS = {
    "linear": lambda **keywords: SparseLinear(20, 12, **keywords),
    "conv": lambda **keywords: SparseConv2d(4, 6, (3, 2), padding=1, **keywords),
}
INPUTS = {"linear": (3, 20), "conv": (2, 4, 7, 7)}


@pytest.fixture
def make():
    """A layer of 12 x 20 (60 active) or 6 x 4 x 3 x 2 (36 active), at another sparsity on demand."""

    def make_layer(kind, storage="compact", seed=0, sparsity=0.75, **keywords):
        generator = torch.Generator().manual_seed(seed)
        layer = LAYERS[kind](sparsity=sparsity, storage=storage, generator=generator, **keywords)
        with torch.no_grad():
            layer.bias.normal_(generator=generator)
        return layer

    return make_layer


@pytest.fixture
def snapshot():
    def take(layer):
        return layer.pattern, {name: p.detach().clone() for name, p in layer.named_parameters()}

    return take


@pytest.fixture
def assert_unchanged():
    def check(layer, before):
        pattern, parameters = before
        assert layer.pattern is pattern
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, parameters[name])

    return check


@pytest.fixture
def draw_input():
    """A batch that the layers of `make` take, by kind."""
    return lambda kind, **keywords: torch.randn(INPUTS[kind], **keywords)


@pytest.fixture
def assert_same(draw_input):
    def check(a, b, kind):
        assert a.pattern == b.pattern
        assert torch.equal(a.to_dense(), b.to_dense())
        x = draw_input(kind)
        assert torch.equal(a(x), b(x))

    return check


class Net(nn.Module):
    """Convolutions, a nested block, normalization, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(
            nn.Conv2d(8, 16, 3, stride=2, groups=2, bias=False), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(16 * 3 * 3, 10)

    def forward(self, x):
        return self.head(self.body(self.norm(self.stem(x))))


class Tied(nn.Module):
    """One module in two places (a, b), one that shares its weight (c), a head tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.a = nn.Linear(16, 16)
        self.b = self.a
        self.c = nn.Linear(16, 16)
        self.c.weight = self.a.weight
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.c(self.b(self.a(self.embedding(tokens)))))


@pytest.fixture
def net():
    def make_net(seed=0):
        torch.manual_seed(seed)
        return Net()

    return make_net


@pytest.fixture
def tied():
    def make_tied():
        torch.manual_seed(0)
        return Tied()

    return make_tied


class Ddp(nn.parallel.DistributedDataParallel):
    """The wrapper without its process group."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


@pytest.fixture
def ddp():
    return Ddp


@pytest.fixture
def reasons():
    return lambda report: {layer.name: layer.reason for layer in report.left}


@pytest.fixture
def sparse_names():
    return lambda model: [name for name, module in model.named_modules() if isinstance(module, SparseLayer)]


@pytest.fixture
def masked_dense_twin():
    """The dense model with the sparse one's masks applied: the oracle for init="keep"."""

    def make_twin(model, sparse):
        twin = copy.deepcopy(model)
        for name, layer in sparse.named_modules():
            if isinstance(layer, SparseLayer):
                with torch.no_grad():
                    twin.get_submodule(name).weight.mul_(layer.mask)
        return twin

    return make_twin
