"""Synaptic flow against the authors' procedure on a copy: magnitudes written in place, in evaluation mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.methods import at_init_masks
from sparsekern.methods.at_init import synflow_scores

NAMES = ["0", "3", "7", "9"]
IMAGE = torch.randn(1, 2, 8, 8)


def by_hand(model, shape, masks=None):
    """``|w| dR/d|w|`` by layer name."""
    copied = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.abs_()
        for name, mask in (masks or {}).items():
            copied.get_submodule(name).weight.mul_(mask)
    copied.requires_grad_(True)
    copied(torch.ones(shape, dtype=torch.float64)).sum().backward()
    weights = {name: copied.get_submodule(name).weight for name in masks or NAMES}
    return {name: (weight.grad * weight).detach() for name, weight in weights.items()}


def assert_scores(found, expected, rtol=1e-12):
    assert list(found) == list(expected)
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=rtol, atol=0)


def test_of_two_layers_by_hand():
    """R is the sum of ``|B| |A| 1``: ``|A[j, i]|`` counts the column j of B, ``|B[k, j]|`` the row j of A."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [-4.0, 0.0, 5.0]]))
        model[2].weight.copy_(torch.tensor([[-1.0, 2.0], [3.0, -4.0]]))
    found = synflow_scores(model, torch.zeros(1, 3))
    assert found["0"].tolist() == [[4.0, 8.0, 12.0], [24.0, 0.0, 30.0]]
    assert found["2"].tolist() == [[6.0, 18.0], [18.0, 36.0]]


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_scores_are_those_of_the_procedure(dense_network, dtype, norm):
    model = dense_network(dtype, activation=nn.ReLU, norm=norm)
    if norm:
        with torch.no_grad():
            model[1].running_var.uniform_(0.5, 2)
            model[1].weight.uniform_(-1, 1)
    found = synflow_scores(model, IMAGE)
    assert all(score.dtype == torch.float64 and score.min() >= 0 for score in found.values())
    assert_scores(found, by_hand(model, IMAGE.shape))


def test_each_layer_carries_the_whole_flow():
    """Conservation, which the promise of no collapse rests on: homogeneous activations, and no biases."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(5 * 9, 13, bias=False),
        nn.LeakyReLU(0.3),
        nn.Linear(13, 4, bias=False),
    )
    sums = [score.sum().item() for score in synflow_scores(model, IMAGE).values()]
    positive = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in positive.parameters():
            parameter.abs_()
        flow = positive(torch.ones(IMAGE.shape, dtype=torch.float64)).sum().item()
    assert sums == pytest.approx([flow] * 3, rel=1e-12)


def test_data_and_signs_do_not_matter(dense_network):
    model = dense_network(activation=nn.ReLU)
    expected = synflow_scores(model, IMAGE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    assert_scores(synflow_scores(model, torch.full_like(IMAGE, torch.nan)), expected, rtol=0)


def test_deep_networks_stay_in_range():
    """R leaves the range of float32 here."""
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32) for _ in range(60)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=1)
    model = nn.Sequential(*layers)
    scores = synflow_scores(model, torch.ones(1, 32))
    assert all(score.isfinite().all() and (score > 0).all() for score in scores.values())
    assert max(score.max() for score in scores.values()) > torch.finfo(torch.float32).max
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(1e6)
    with pytest.raises(
        FloatingPointError, match=r"must be finite, got .* in layer '.*': the outputs must be"
    ):
        at_init_masks(model, "synflow", 0.5, example=torch.ones(1, 32), rounds=1)


def test_frozen_and_shared_weights_and_several_inputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.out = nn.Linear(4, 2).requires_grad_(False)

        def forward(self, x, y):
            return self.out(self.a(x).relu() + self.b(self.a(y)).relu())

    torch.manual_seed(0)
    model = Net()
    found = synflow_scores(model, (torch.randn(1, 4), torch.randn(1, 4)))
    assert list(found) == ["a", "out"]
    weight = model.a.weight.detach().double().abs().requires_grad_()
    out = model.out.weight.double().abs().requires_grad_()
    once = weight @ torch.ones(4, dtype=torch.float64)
    (out @ (once + weight @ once)).sum().backward()
    assert_scores(found, {"a": (weight * weight.grad).detach(), "out": (out * out.grad).detach()}, rtol=1e-12)
    assert not model.out.weight.requires_grad


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_sparse_layers_take_part_and_are_not_scored(dense_network, storage):
    model = dense_network(activation=nn.ReLU)
    mask = torch.rand(8, 3, 3, 2) < 0.5
    with torch.no_grad():
        model[3].weight.mul_(mask)
    expected = synflow_scores(model, IMAGE, exclude=["3"])
    sk.sparsify_(model, masks={"3": mask}, storage=storage)
    assert_scores(synflow_scores(model, IMAGE), expected, rtol=1e-9)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(dense_network, context):
    model = dense_network()
    expected = synflow_scores(model, IMAGE)
    with context():
        assert_scores(synflow_scores(model, IMAGE), expected, rtol=0)


def test_nothing_changes(dense_network, loss_of, snapshot):
    model = dense_network(torch.float32, norm=True)
    model[7].weight.requires_grad_(False)
    loss_of(model, torch.float32)().backward()
    model[4].eval()
    before = snapshot(model)
    synflow_scores(model, IMAGE)
    before.check()
    at_init_masks(model, "synflow", 0.8, example=IMAGE, rounds=7)
    before.check()


def test_nothing_changes_when_the_model_fails(dense_network, snapshot):
    class Failing(nn.Module):
        def forward(self, x):
            torch.rand(3)
            raise RuntimeError("broken")

    model = nn.Sequential(dense_network(norm=True), Failing())
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="broken"):
        synflow_scores(model, IMAGE)
    before.check()


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (3, TypeError, "example must be a floating-point tensor or a tuple of them, got 3"),
        ((), TypeError, r"example must be a floating-point tensor or a tuple of them, got \(\)"),
        (torch.ones(1, 3).long(), TypeError, "a tuple of them, got a torch.int64 tensor"),
        ((torch.ones(1), [1]), TypeError, r"a tuple of them, got \[1\]"),
        (torch.ones(1, 2, 8, 8, device="meta"), ValueError, "example must be a tensor with contents"),
    ],
    ids=["number", "nothing", "indices", "list", "meta"],
)
def test_examples_that_are_none(dense_network, example, error, message):
    with pytest.raises(error, match=message):
        synflow_scores(dense_network(), example)


def test_models_that_return_no_tensor_of_their_weights(dense_network):
    class Wrapped(nn.Module):
        def __init__(self, result):
            super().__init__()
            self.net, self.result = dense_network(), result

        def forward(self, x):
            return self.result(self.net(x))

    for result, came in (
        (lambda y: {"y": y}, r"\{'y': "),
        (lambda y: y.detach(), r"a torch\.float64 tensor"),
    ):
        with pytest.raises(TypeError, match=f"model must return a tensor that depends on .*, got {came}"):
            synflow_scores(Wrapped(result), IMAGE)
