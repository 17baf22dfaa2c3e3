"""RigL at 90 % on a whole transformer and a whole convnet, on what PyTorch's loops are made of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import sparsekern as sk
from sparsekern.nn import SparseLayer

STEPS, EVERY, CLASSES, OVERFLOWS = 21, 4, 5, {2, 3, 9}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Several add to PyTorch's gradient of an embedding in whichever order they come."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recomputed(nn.Module):
    """A part of a network whose activations may be computed again in the backward pass."""

    use_reentrant: bool | None = None

    def forward(self, x):
        if self.use_reentrant is None:
            return self.part(x)
        return checkpoint(self.part, x, use_reentrant=self.use_reentrant)


class Block(Recomputed):
    def __init__(self, size=24, heads=3):
        super().__init__()
        self.before, self.between = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.heads = heads

    def part(self, x):
        samples, length, size = x.shape
        heads = self.qkv(self.before(x)).view(samples, length, 3, self.heads, size // self.heads)
        attention = F.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.out(attention.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(31, 24)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(24, CLASSES)

    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens)).mean(1))

    @staticmethod
    def batch(generator, dtype):
        return torch.randint(31, (8, 11), generator=generator)


class Residual(Recomputed):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(9, 12, 3, padding=1), nn.Conv2d(12, 9, 1)

    def part(self, x):
        return x + self.second(self.first(x).relu())


class Convnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 9, 3, stride=2), nn.BatchNorm2d(9), nn.ReLU())
        self.blocks = nn.Sequential(Residual(), nn.MaxPool2d(2), Residual())
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

    @staticmethod
    def batch(generator, dtype):
        return torch.randn(8, 3, 9, 9, generator=generator).to(dtype)


class Run:
    """A training run; what is given decides what its loop is made of."""

    def __init__(self, network, *, dtype=torch.float32, backend=None, use_reentrant=None, everything=False):
        torch.manual_seed(0)
        self.model = network().to(dtype)
        sk.sparsify_(self.model, sparsity=0.9, distribution="erk", init="per_neuron")
        self.first = self.masks()
        for module in self.model.modules():
            if isinstance(module, Recomputed):
                module.use_reentrant = use_reentrant
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2)
        self.method = sk.RigL(self.model, self.optimizer, update_every=EVERY)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.method.follow(self.average)
        self.everything, self.graphs = everything, []
        torch._dynamo.reset()
        counters.clear()
        forward = (
            self.model if backend is None else torch.compile(self.model, backend=backend, fullgraph=True)
        )
        # A power of two, so that gradients are the same bits without it.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=everything)
        for step in range(STEPS):
            self.take_step(step, forward, scaler, dtype)
            self.graphs.append(counters["stats"]["unique_graphs"])

    def take_step(self, step, forward, scaler, dtype):
        generator = torch.Generator().manual_seed(step)
        x = self.model.batch(generator, dtype)
        labels = torch.randint(CLASSES, (8,), generator=generator)
        for part in torch.arange(8).chunk(2 if self.everything else 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.everything):
                loss = F.cross_entropy(forward(x[part]), labels[part])
            scaler.scale(loss).backward()
        if self.everything:
            if step in OVERFLOWS:
                self.model.head.bias.grad[0] = torch.inf
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)

    def masks(self):
        return {name: m.mask for name, m in self.model.named_modules() if isinstance(m, SparseLayer)}

    def assert_moved(self, steps=STEPS):
        assert (self.method.steps, self.method.updates) == (steps, steps // EVERY)
        assert all(not torch.equal(mask, self.first[name]) for name, mask in self.masks().items())

    def assert_is(self, other):
        """The same bits, in the model and in its average."""
        for mine, theirs in ((self.model, other.model), (self.average, other.average)):
            state = theirs.state_dict()
            for key, tensor in mine.state_dict().items():
                assert torch.equal(tensor, state[key]), key


@pytest.fixture(scope="module", params=[Transformer, Convnet])
def network(request):
    return request.param


@pytest.fixture(scope="module")
def plain(network):
    run = Run(network)
    run.assert_moved()
    return run


def test_one_compiled_graph_serves_all_patterns(network, plain):
    run = Run(network, backend="aot_eager")
    assert run.graphs == [1] * STEPS
    run.assert_is(plain)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_recomputed_activations(network, plain, use_reentrant):
    Run(network, use_reentrant=use_reentrant).assert_is(plain)


def test_recomputed_in_a_compiled_graph(network, plain):
    run = Run(network, backend="aot_eager", use_reentrant=False)
    assert run.graphs == [1] * STEPS
    run.assert_is(plain)


def test_all_at_once(network):
    """Compiled, autocast, accumulated, clipped, scaled with steps left out, averaged: as eagerly."""
    eager = Run(network, everything=True)
    eager.assert_moved(STEPS - len(OVERFLOWS))
    run = Run(network, everything=True, backend="aot_eager", use_reentrant=False)
    assert run.graphs == [1] * STEPS
    run.assert_is(eager)
    for layer, other in zip(run.model.modules(), run.average.module.modules()):
        assert not isinstance(layer, SparseLayer) or layer.pattern == other.pattern


@pytest.mark.slow
def test_inductor(network):
    """Its own kernels round otherwise: float64 keeps that from the order of gradients."""
    eager, run = (Run(network, dtype=torch.float64, backend=backend) for backend in (None, "inductor"))
    assert run.graphs == [1] * STEPS
    assert all(torch.equal(mask, eager.masks()[name]) for name, mask in run.masks().items())
    torch.testing.assert_close(
        dict(run.model.named_parameters()), dict(eager.model.named_parameters()), rtol=1e-7, atol=1e-9
    )


def test_float16_needs_a_gpu(network):
    generator = torch.Generator().manual_seed(0)
    sk.sparsify_(model := network(), sparsity=0.9)
    words = (
        "no backend can run it on float16 tensors on cpu\n  cpp: it computes in float32, float64, bfloat16"
    )
    with torch.autocast("cpu", torch.float16), pytest.raises(sk.BackendError, match=words):
        model(network.batch(generator, torch.float32))
    if network is Convnet:
        with pytest.raises(sk.BackendError, match=words):
            model.half()(network.batch(generator, torch.float16))
