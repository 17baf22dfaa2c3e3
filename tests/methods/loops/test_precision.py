"""Loops that accumulate, skip, cast, recompute or compile: updates are those of the plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparsekern as sk
from sparsekern.nn import SparseLayer

EVERY, BATCH = 4, 12
METHODS = {"RigL": sk.RigL, "RigLInverted": sk.RigLInverted, "SNFS": sk.SNFS}
every_method = pytest.mark.parametrize("method", METHODS)


def network(storage="compact", dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(80, 21), nn.Tanh()),
        nn.Linear(21, 7),
    ).to(dtype)
    sk.sparsify_(model, sparsity=0.8, init="per_neuron", storage=storage)
    return model


def batch(step, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(BATCH, 2, 4, 4, generator=generator, dtype=torch.float64).to(dtype)


def masks(model):
    return {name: m.mask for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


class Run:
    """A model that a method moves, and steps of the plain loop."""

    def __init__(
        self, method="RigL", optimizer=torch.optim.SGD, storage="compact", dtype=torch.float64, **options
    ):
        self.model = network(storage, dtype)
        self.first = masks(self.model)
        self.optimizer = optimizer(self.model.parameters(), 0.05)
        self.method = METHODS[method](self.model, self.optimizer, update_every=EVERY, **options)
        self.step = 0

    def loss(self, model=None, part=slice(None), scale=1.0):
        x = batch(self.step, next(self.model.parameters()).dtype)[part]
        return (model or self.model)(x).square().sum() * (scale / BATCH)

    def take_step(self, set_to_none=True):
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=set_to_none)
        self.step += 1

    def train(self, steps, model=None):
        for _ in range(steps):
            self.loss(model).backward()
            self.take_step()
        return self

    def assert_as(self, other):
        """The same patterns, exactly, other ones than at first; weights but for the order of sums."""
        assert (self.method.steps, self.method.updates) == (other.method.steps, other.method.updates)
        assert not any(torch.equal(mask, self.first[name]) for name, mask in masks(self.model).items())
        assert_equal(masks(self.model), masks(other.model))
        torch.testing.assert_close(
            dict(self.model.named_parameters()), dict(other.model.named_parameters()), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("set_to_none", [True, False], ids=["grads_to_none", "grads_to_zero"])
@pytest.mark.parametrize("storage", ["compact", "masked"])
@every_method
def test_parts_of_a_batch_are_the_whole(method, storage, set_to_none):
    """From the middle of the run on, in three parts and then in two."""
    run, whole = (Run(method, storage=storage) for _ in range(2))
    for step in range(14):
        parts = [slice(0, 12)] if step < 6 else [slice(0, 5), slice(5, 9), slice(9, 12)]
        parts = parts if step < 11 else [slice(0, 7), slice(7, 12)]
        for part in parts:
            run.loss(part=part).backward()
        run.take_step(set_to_none)
    run.assert_as(whole.train(14))


@every_method
def test_accumulation_that_begins_at_an_update_puts_it_off(method):
    """One contribution was selected from before another came: the next step's update has both."""
    run = Run(method)
    run.train(EVERY - 1)
    for part in (slice(0, 5), slice(5, 12)):
        run.loss(part=part).backward()
    run.take_step()
    late = method == "RigL"
    assert run.method.updates == (0 if late else 1)
    for part in (slice(0, 5), slice(5, 12)):
        run.loss(part=part).backward()
    run.take_step()
    assert run.method.updates == 1
    assert run.method.next_update == 2 * EVERY


@every_method
@pytest.mark.parametrize("clip", [0.01, 100.0], ids=["clipped", "left"])
@pytest.mark.parametrize("parts", [1, 2], ids=["whole", "two_parts"])
def test_clipping_changes_no_growth(method, parts, clip):
    """The gradient counts as it was computed, before and after it is scaled in place."""
    run, other = Run(method), Run(method)
    for _ in range(EVERY):
        for each in (run, other):
            for part in torch.arange(BATCH).chunk(parts):
                each.loss(part=part).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), clip)
        for each in (run, other):
            # Weights stay equal, so that only the gradient's scale could make patterns differ.
            each.optimizer.param_groups[0]["lr"] = 0.0
            each.take_step()
    run.assert_as(other)


@every_method
@pytest.mark.parametrize("create_graph", [False, True], ids=["first_order", "create_graph"])
def test_gradients_that_are_only_asked_for_leave_no_trace(method, create_graph):
    run, plain = Run(method), Run(method)
    for _ in range(2 * EVERY):
        parameters = list(run.model.parameters())
        torch.autograd.grad(run.loss(scale=100.0), parameters)
        run.loss().backward()
        torch.autograd.grad(run.loss(scale=-3.0), parameters, create_graph=create_graph)
        run.take_step()
    run.assert_as(plain.train(2 * EVERY))


@every_method
@pytest.mark.parametrize("set_to_none", [True, False], ids=["grads_to_none", "grads_to_zero"])
def test_gradients_that_are_thrown_away_leave_no_trace(method, set_to_none):
    run, plain = Run(method), Run(method)
    for _ in range(2 * EVERY):
        run.loss(scale=100.0).backward()
        run.optimizer.zero_grad(set_to_none=set_to_none)
        run.loss().backward()
        run.take_step(set_to_none)
    run.assert_as(plain.train(2 * EVERY))


class Checkpointed(nn.Module):
    def __init__(self, model, use_reentrant):
        super().__init__()
        self.model, self.use_reentrant = model, use_reentrant

    def forward(self, x):
        x = self.model[0](x)
        x = checkpoint(self.model[1], x, use_reentrant=self.use_reentrant)
        return self.model[2](x)


@every_method
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@pytest.mark.parametrize("parts", [1, 2], ids=["whole", "two_parts"])
def test_recomputed_blocks(method, parts, use_reentrant):
    run, plain = Run(method), Run(method)
    model = Checkpointed(run.model, use_reentrant)
    for _ in range(2 * EVERY):
        for part in torch.arange(BATCH).chunk(parts):
            run.loss(model, part=part).backward()
        run.take_step()
    run.assert_as(plain.train(2 * EVERY))


@every_method
def test_compiled_model(method):
    run, plain = Run(method), Run(method)
    torch._dynamo.reset()
    run.train(4 * EVERY, torch.compile(run.model, backend="aot_eager"))
    run.assert_as(plain.train(4 * EVERY))
    assert run.method.updates == 4


class Tied(nn.Module):
    """One weight three times: before, in and behind a block that may be recomputed."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(17, 17) for _ in range(3))
        self.second.weight = self.third.weight = self.first.weight
        self.use_reentrant = None

    def forward(self, x):
        x = self.first(x).tanh()
        if self.use_reentrant is None:
            x = self.second(x).tanh()
        else:
            x = checkpoint(lambda y: self.second(y).tanh(), x, use_reentrant=self.use_reentrant)
        return self.third(x)


@every_method
@pytest.mark.parametrize("use_reentrant", [None, True, False], ids=["plain", "reentrant", "not_reentrant"])
def test_tied_weights_grow_by_the_sum_of_their_gradients(method, use_reentrant):
    torch.manual_seed(0)
    model = Tied().double()
    sk.sparsify_(model, sparsity=0.8, init="per_neuron")
    model.use_reentrant = use_reentrant
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    METHODS[method](model, optimizer, update_every=2, drop_fraction=0.4)
    x = torch.randn(9, 17, dtype=torch.float64)
    before, mask = model.first.to_dense().detach(), model.first.mask
    biases = [layer.bias.detach() for layer in (model.first, model.second, model.third)]
    dense = before.clone().requires_grad_()
    hidden = x
    for bias in biases[:2]:
        hidden = nn.functional.linear(hidden, dense, bias).tanh()
    nn.functional.linear(hidden, dense, biases[2]).square().sum().backward()
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model.first.mask, expected_mask(before, mask, dense.grad, 0.4, method))
    assert model.first.pattern is model.third.pattern


def expected_mask(weight, mask, gradient, fraction, method="RigL"):
    """Drop and grow, on dense tensors."""
    count = int(int(mask.sum()) * fraction)
    magnitude = torch.where(mask, weight.abs(), torch.inf).flatten()
    kept = mask.flatten().clone()
    kept[magnitude.sort(stable=True).indices[:count]] = False
    scores = gradient.abs().flatten() * (-1 if method == "RigLInverted" else 1)
    scores = torch.where(kept, -torch.inf, scores)
    kept[scores.sort(descending=True, stable=True).indices[:count]] = True
    return kept.view(mask.shape)


@every_method
def test_a_vector_is_a_batch_of_one(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(11, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    sk.sparsify_(model, sparsity=0.7, init="per_neuron")
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    METHODS[method](model, optimizer, update_every=2, drop_fraction=0.5)
    x = torch.randn(11, dtype=torch.float64)
    layer = model[2]
    mask, before = layer.mask, layer.to_dense().detach()
    hidden = model[1](model[0](x)).detach()
    for _ in range(2):
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    gradient = hidden.expand(5, 9)
    assert torch.equal(layer.mask, expected_mask(before, mask, gradient, 0.5, method))


@every_method
def test_autocast_trains_in_bfloat16(method):
    """The gradient is that of what autocast lets run: both factors in bfloat16, sums in float32."""
    run = Run(method, dtype=torch.float32, drop_fraction=0.4)
    taken = {}
    layer = run.model[2]
    layer.register_forward_hook(lambda module, args, output: taken.update(x=args[0], y=output))
    for step in range(EVERY):
        with torch.autocast("cpu", torch.bfloat16):
            output = run.model(batch(run.step, torch.float32))
            loss = output.square().mean()
        taken["y"].retain_grad()
        loss.backward()
        before, mask = layer.to_dense().detach().clone(), layer.mask
        run.optimizer.param_groups[0]["lr"] = 0.0
        run.take_step()
        if method != "SNFS" and step == EVERY - 1:
            gradient = taken["y"].grad.double().T @ taken["x"].detach().double()
            assert taken["y"].dtype == torch.bfloat16
            assert torch.equal(layer.mask, expected_mask(before, mask, gradient, 0.4, method))
    assert run.method.updates == 1
    assert layer.values.dtype == torch.float32
