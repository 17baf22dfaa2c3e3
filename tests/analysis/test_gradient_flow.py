"""Gradient flow on closed forms and on every form of a sparse model; measuring it changes nothing."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sparsekern as sk
from sparsekern.analysis import GradientFlowRecorder, MaskUpdateRecorder, gradient_flow
from sparsekern.methods import compact_, masks_of
from sparsekern.nn import SparseLayer, SparseLinear


def batch(seed, samples=12):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 2, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (samples,), generator=generator)


def loss_on(seed):
    images, labels = batch(seed)
    return lambda model: nn.functional.cross_entropy(model(images), labels)


fixed = loss_on(999)


def network(storage="compact", sparsity=0.7):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.BatchNorm2d(5),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(80, 17),
        nn.Tanh(),
        nn.Linear(17, 4),
    ).double()
    if storage is not None:
        sk.sparsify_(model, sparsity=sparsity, init="keep", storage=storage)
    return model


def evaluated(model):
    """Without what dropout draws."""
    return model.eval()


class Quadratic(nn.Module):
    """sum(a (w - c)^2) / 2 of a sparse weight, and a parameter that is not used."""

    def __init__(self, storage):
        super().__init__()
        mask = torch.tensor([[True, False, True], [False, True, False]])
        self.layer = SparseLinear(3, 2, bias=False, mask=mask, storage=storage, dtype=torch.float64)
        self.unused = nn.Parameter(torch.ones(3))
        with torch.no_grad():
            self.layer.write_dense(torch.tensor([[1.0, 9.0, -2.0], [9.0, 0.5, 9.0]]).double())


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_of_a_quadratic_is_that_of_its_gradient(storage):
    model = Quadratic(storage)
    a = torch.tensor([[2.0, 5.0, 3.0], [5.0, 4.0, 5.0]]).double()
    c = torch.tensor([[0.5, 7.0, 1.0], [7.0, -1.5, 7.0]]).double()
    flow = gradient_flow(model, lambda model: (a * (model.layer.to_dense() - c).square()).sum() / 2)
    # a (w - c) at the active positions: 2 * 0.5, 3 * -3, 4 * 2.
    assert flow.norm == pytest.approx(math.sqrt(1 + 81 + 64), rel=1e-15)
    name = "layer.values" if storage == "compact" else "layer.weight"
    assert flow.parameters == {"unused": 0.0, name: pytest.approx(flow.norm, rel=1e-15)}
    assert "parameters" not in repr(flow)


def test_every_form_of_a_sparse_model_has_the_same():
    masked = evaluated(network("masked"))
    masks = {name: pattern.to_mask() for name, pattern in masks_of(masked).items()}
    compact = copy.deepcopy(masked)
    compact_(compact)
    pruned = copy.deepcopy(masked)
    sk.densify_(pruned)
    for name, mask in masks.items():
        prune.custom_from_mask(pruned.get_submodule(name), "weight", mask)
    evaluated(pruned)(batch(0)[0])  # the weight of a pruned layer has a graph now
    # By hand: what reaches the dense weights at the active positions, and all other parameters.
    dense = copy.deepcopy(masked)
    sk.densify_(dense)
    fixed(evaluated(dense)).backward()
    squares = 0.0
    for name, parameter in dense.named_parameters():
        mask = masks.get(name.removesuffix(".weight"), torch.ones(())) if name.endswith("weight") else 1
        squares += float((parameter.grad * mask).square().sum())
    for model in (masked, compact, pruned):
        assert gradient_flow(model, fixed).norm == pytest.approx(math.sqrt(squares), rel=1e-12)
    assert gradient_flow(dense, fixed).norm > math.sqrt(squares)


@pytest.mark.parametrize("method", ["sr_ste", "ste", "fixed"])
def test_pruned_weights_of_two_four_layers_have_no_part(method):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    sk.sparsify_(model, pattern="2:4", method=method)
    masks, x = [model[0].mask, model[2].mask], torch.randn(9, 8, dtype=torch.float64)
    dense = copy.deepcopy(model)
    sk.densify_(dense)
    dense(x).square().mean().backward()
    squares = [(dense[i].weight.grad * mask).square().sum() for i, mask in zip((0, 2), masks)]
    squares += [dense[i].bias.grad.square().sum() for i in (0, 2)]
    flow = gradient_flow(model, lambda model: model(x).square().mean())
    assert flow.norm == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-9)


def test_parameters_that_are_shared_or_frozen():
    first, second = SparseLinear(6, 6, sparsity=0.5), SparseLinear(6, 6, sparsity=0.5)
    second.tie_weight(first)
    model = nn.Sequential(first, second).double()
    model[1].bias.requires_grad_(False)

    def loss(model):
        return model(torch.ones(2, 6).double()).square().sum()

    found = gradient_flow(model, loss)
    loss(model).backward()
    assert found.parameters.keys() == {"0.values", "0.bias"}
    assert found.parameters["0.values"] == pytest.approx(float(model[0].values.grad.norm()), rel=1e-12)


def test_nothing_of_the_model_changes():
    model = network()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    with torch.no_grad():
        first = gradient_flow(model, fixed)
    assert first.norm > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert gradient_flow(model, fixed) == first  # dropout draws the same
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all((parameter.grad == 3.0).all() for parameter in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    ("model", "loss", "error", "message"),
    [
        (3, fixed, TypeError, "model must be a torch.nn.Module, got 3 (int)"),
        (nn.Flatten(), fixed, ValueError, "model must have a parameter that requires a gradient, got none"),
        (nn.Linear(2, 2), 3, TypeError, "loss must be a function of the model, got 3 (int)"),
        (nn.Linear(2, 2), lambda m: m.weight, TypeError, "loss must return a scalar tensor, got a torch."),
        (nn.Linear(2, 2), lambda m: 1.0, TypeError, "loss must return a scalar tensor, got 1.0 (float)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_arguments_are_refused(model, loss, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gradient_flow(model, loss)


@pytest.mark.parametrize("detached", [False, True])
def test_a_loss_of_another_model_is_refused(detached):
    """Not a norm of 0: a copy is measured, and a loss of the original has no gradient there."""
    model, given = network(), []

    def loss(copied):
        given.append(copied)
        return fixed(copied).detach() if detached else fixed(model)

    with pytest.raises(ValueError, match="loss must depend on the parameters of the model that it is given"):
        gradient_flow(model, loss)
    assert given[0] is not model


@pytest.mark.parametrize("storage", [None, "compact", "masked"])
def test_in_inference_mode(storage):
    expected = gradient_flow(network(storage), fixed)
    fresh = network(storage)
    with torch.inference_mode():
        assert gradient_flow(fresh, fixed) == expected
    assert gradient_flow(fresh, fixed) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_no_norm(value):
    """Its gradient may be 0, which would look like a network that is done."""
    model = Quadratic("compact")
    flow = gradient_flow(model, lambda model: model.layer.values.sum() * 0 + value)
    assert math.isnan(flow.norm)
    assert math.isnan(flow.parameters["layer.values"])
    assert flow.parameters["unused"] == 0
    empty = torch.ones(0, 3, dtype=torch.float64)
    assert math.isnan(gradient_flow(model, lambda model: model.layer(empty).square().mean()).norm)


METHODS = {
    "rigl": lambda m, o: sk.RigL(m, o, update_every=3),
    "rigl, holdout": lambda m, o: sk.RigL(
        m, o, update_every=3, grow_gradient="holdout", holdout=lambda: loss_on(77)(m)
    ),
    "rigl, replaces step": lambda m, o: sk.RigL(m, o, update_every=3, update="replaces_step"),
    "set": lambda m, o: sk.SET(m, o, update_every=3),
    "snfs": lambda m, o: sk.SNFS(m, o, update_every=3),
    "pruning": lambda m, o: sk.GradualPruning(m, o, sparsity=0.9, begin=2, end=8, update_every=3),
}
STEPS = 11


def trained(method, storage, measured):
    model = network(storage)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    recorders = []
    if measured:
        updates = MaskUpdateRecorder(model, optimizer, fixed)
        recorders = [GradientFlowRecorder(model, optimizer, fixed, every=2), updates]
    attached = METHODS[method](model, optimizer)
    if measured:
        updates.follow(attached)
    torch.manual_seed(1)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in (0, 1):
            loss_on(2 * step + part)(model).backward()
        optimizer.step()
    return model, optimizer, recorders


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("method", METHODS)
def test_measuring_does_not_change_training(method, storage):
    if method == "pruning" and storage == "compact":
        storage = "masked"
    plain, plain_optimizer, _ = trained(method, storage, measured=False)
    model, optimizer, recorders = trained(method, storage, measured=True)
    assert len(recorders[0].history) == 1 + STEPS // 2
    assert recorders[1].before is None  # the last update was two steps ago
    mine, theirs = model.state_dict(), plain.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.grad, b.grad)
        buffers = [opt.state[p]["momentum_buffer"] for opt, p in ((optimizer, a), (plain_optimizer, b))]
        assert torch.equal(*buffers)


def test_layers_of_the_copy_are_not_observed():
    model = network("compact")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.RigL(model, optimizer, update_every=1)
    fixed(model).backward()
    kept = [len(layer.watch.kept) for layer in method.layers]
    gradient_flow(model, fixed)
    assert [len(layer.watch.kept) for layer in method.layers] == kept
    assert all(isinstance(layer.layer, SparseLayer) for layer in method.layers)
