"""What the layers' tests share, as fixtures that are functions: layers and models from a seed, checks."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
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


# 2:4 layers in plain PyTorch, dense: the fixture `dense`.


def as_matrix(weight):
    """A convolution's columns in (kernel height, kernel width, input channel) order."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def as_weight(matrix, shape):
    if len(shape) == 2:
        return matrix
    return matrix.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


def row_mask(weight):
    """The two largest magnitudes of every four in a row; no two are equal in these tests."""
    groups = as_matrix(weight.detach()).abs().unflatten(1, (-1, 4))
    kept = groups >= groups.sort(-1).values[..., 2:3]
    return as_weight(kept.flatten(1), weight.shape)


def transposable_mask(weight):
    """The best of all masks of each 4 x 4 tile, one after another."""
    magnitudes = as_matrix(weight.detach()).abs()
    rows = [
        torch.tensor([float(c in pair) for c in range(4)]) for pair in itertools.combinations(range(4), 2)
    ]
    masks = torch.stack([torch.stack(four) for four in itertools.product(rows, repeat=4)])
    masks = masks[(masks.sum(1) == 2).all(1)].to(magnitudes.dtype)
    mask = torch.zeros_like(magnitudes, dtype=torch.bool)
    for i, j in itertools.product(range(0, mask.shape[0], 4), range(0, mask.shape[1], 4)):
        tile = magnitudes[i : i + 4, j : j + 4]
        mask[i : i + 4, j : j + 4] = masks[(masks * tile).sum((1, 2)).argmax()].bool()
    return as_weight(mask, weight.shape)


MASKS = {False: row_mask, True: transposable_mask}


def straight_through(weight, mask):
    """The masked weight, whose gradient is that of the weight."""
    return weight + (weight * mask - weight).detach()


def penalty(weight, mask, decay):
    """Its gradient is the term of SR-STE."""
    return decay / 2 * (weight * ~mask).square().sum()


class DenseTwin(nn.Module):
    """A model whose named layers have 2:4 masks: dense weights, and masks applied by hand.

    `losses` is to be called with the function that gives the loss of the model: it adds what SR-STE adds.
    """

    def __init__(self, model, names, *, method, transposable=False, refresh_every=1, decay=0.0):
        super().__init__()
        self.model = model
        self.names = names
        self.method, self.transposable, self.decay = method, transposable, decay
        self.refresh_every = refresh_every
        self.changes = 0
        self.masks = {}
        self.choose()

    def choose(self):
        """As before a forward pass in training."""
        if self.masks and (self.method == "fixed" or self.changes % self.refresh_every):
            return
        for name in self.names:
            self.masks[name] = MASKS[self.transposable](self.model.get_parameter(f"{name}.weight"))

    def forward(self, *inputs):
        weights = dict(self.model.named_parameters())
        for name, mask in self.masks.items():
            weight = weights[f"{name}.weight"]
            weights[f"{name}.weight"] = (
                weight * mask if self.method == "fixed" else straight_through(weight, mask)
            )
        return torch.func.functional_call(self.model, weights, inputs)

    def added(self):
        """What is added to the loss of every backward pass."""
        return sum(
            penalty(self.model.get_parameter(f"{name}.weight"), mask, self.decay)
            for name, mask in self.masks.items()
        )


def linear(x, weight, mask, bias, *, method, decay):
    """y, and what is to be added to the loss."""
    if method == "fixed":
        return F.linear(x, weight * mask, bias), 0
    return F.linear(x, straight_through(weight, mask), bias), penalty(weight, mask, decay)


@pytest.fixture
def dense():
    return SimpleNamespace(
        masks=MASKS,
        straight_through=straight_through,
        penalty=penalty,
        linear=linear,
        Twin=DenseTwin,
    )
