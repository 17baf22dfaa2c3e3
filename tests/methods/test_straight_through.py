"""Learned masks: by hand, in exact numbers, trained by any loop, and made sparse in the end."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.methods import fix_learned_masks_, masks_of, straight_through_
from sparsekern.methods.straight_through import learned_mask

KINDS = {
    "edge_popup": {},
    "by_value": {"rank": "value"},
    "sigmoid": {"scores": "sigmoid"},
    "sampled": {"scores": "sigmoid", "sample": True},
}


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 11), nn.Tanh(), nn.Linear(11, 5)
    ).to(dtype)


def images(dtype=torch.float64):
    return torch.randn(9, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def small(weight, values, sparsity, **options):
    """One layer of one output, with scores put in by hand."""
    model = nn.Sequential(nn.Linear(len(weight), 1, bias=False, dtype=torch.float64))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([weight]))
    straight_through_(model, sparsity, **options)
    mask = model[0].parametrizations.weight[0]
    with torch.no_grad():
        mask.scores.copy_(torch.tensor([values]))
    return model, mask


class TestByHand:
    """``y = sum of (2, -3, 5, 7) * m * x`` at ``x = (1, 10, 100, 1000)``: ``dy/dW = x``."""

    x = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], dtype=torch.float64)
    weight = (2.0, -3.0, 5.0, 7.0)
    scores = (0.5, -0.75, 0.25, -0.125)

    def test_edge_popup_by_magnitude(self):
        model, mask = small(self.weight, self.scores, 0.5)
        y = model(self.x)
        assert y.item() == 2 * 1 - 3 * 10
        y.sum().backward()
        # dy/dW * w * sign(s), of weights that are out too.
        assert mask.scores.grad.tolist() == [[2.0, 30.0, 500.0, -7000.0]]

    def test_edge_popup_by_value(self):
        model, mask = small(self.weight, self.scores, 0.5, rank="value")
        y = model(self.x)
        assert y.item() == 2 * 1 + 5 * 100
        y.sum().backward()
        assert mask.scores.grad.tolist() == [[2.0, -30.0, 500.0, 7000.0]]

    def test_sigmoid(self):
        model, mask = small(self.weight, self.scores, 0.5, scores="sigmoid")
        y = model(self.x)
        assert y.item() == 2 * 1 + 5 * 100
        y.sum().backward()
        slopes = [math.exp(-s) / (1 + math.exp(-s)) ** 2 for s in self.scores]
        expected = [slope * g for slope, g in zip(slopes, (2.0, -30.0, 500.0, 7000.0))]
        assert mask.scores.grad.tolist()[0] == pytest.approx(expected, rel=1e-14)

    def test_sampled_sigmoid(self):
        model, mask = small(self.weight, self.scores, 0.5, scores="sigmoid", sample=True)
        torch.manual_seed(3)
        y = model(self.x)
        torch.manual_seed(3)
        drawn = torch.bernoulli(torch.sigmoid(mask.scores.detach()))
        assert 0 < drawn.sum() < 4
        assert y.item() == (drawn * torch.tensor(self.weight) * self.x).sum().item()
        y.sum().backward()
        slopes = [math.exp(-s) / (1 + math.exp(-s)) ** 2 for s in self.scores]
        expected = [slope * g for slope, g in zip(slopes, (2.0, -30.0, 500.0, 7000.0))]
        assert mask.scores.grad.tolist()[0] == pytest.approx(expected, rel=1e-14)
        assert model.eval()(self.x).item() == 2 * 1 + 5 * 100

    def test_ties_go_to_the_lowest_index(self):
        _, mask = small(self.weight, (1.0, -1.0, 1.0, 1.0), 0.5)
        assert mask.mask().tolist() == [[True, True, False, False]]

    def test_trained_weights_have_the_gradient_of_what_is_there(self):
        model, _ = small(self.weight, self.scores, 0.5, train_weights=True)
        model(self.x).sum().backward()
        assert model[0].parametrizations.weight.original.grad.tolist() == [[1.0, 10.0, 0.0, 0.0]]


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.93])
def test_edge_popup_keeps_exact_numbers_as_scores_train(distribution, sparsity):
    model = network()
    names = straight_through_(model, sparsity, distribution=distribution)
    assert names == ["0", "3", "5"]
    shapes = [tuple(model.get_submodule(name).weight.shape) for name in names]
    shares = sk.methods.layer_sparsities(shapes, sparsity, distribution)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    masks = []
    for _ in range(4):
        masks.append([learned_mask(model.get_submodule(name)).mask() for name in names])
        for mask, share in zip(masks[-1], shares):
            assert int(mask.sum()) == round((1 - share) * mask.numel())
        optimizer.zero_grad()
        model(images()).square().sum().backward()
        optimizer.step()
    if sparsity:
        assert not all(torch.equal(a, b) for a, b in zip(masks[0], masks[-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_with_masks_put_in_by_hand(kind):
    """Forward and every gradient in evaluation mode, against the dense network with w * m."""
    model = network()
    other = copy.deepcopy(model)
    straight_through_(model, 0.6, train_weights=True, **KINDS[kind])
    model.eval()
    for name in ("0", "3", "5"):
        with torch.no_grad():
            learned_mask(model.get_submodule(name)).scores.uniform_(-1, 1)
            other.get_submodule(name).weight.mul_(learned_mask(model.get_submodule(name)).mask())
    result, expected = model(images()), other(images())
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)
    result.square().sum().backward()
    expected.square().sum().backward()
    for name in ("0", "3", "5"):
        layer, mask = model.get_submodule(name), learned_mask(model.get_submodule(name))
        gradient = other.get_submodule(name).weight.grad
        original = layer.parametrizations.weight.original
        torch.testing.assert_close(original.grad, gradient * mask.mask(), rtol=1e-12, atol=1e-14)
        scores = mask.scores.detach()
        slope = {"edge_popup": scores.sign(), "by_value": torch.ones_like(scores)}.get(
            kind, torch.sigmoid(scores) * torch.sigmoid(-scores)
        )
        torch.testing.assert_close(mask.scores.grad, gradient * original * slope, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", ["edge_popup", "sigmoid"])
def test_scores_alone_train_and_learn(kind):
    model = network()
    with torch.no_grad():
        for name in ("0", "3", "5"):  # large enough that choosing among them can make the loss small
            model.get_submodule(name).weight.mul_(4)
    straight_through_(model, 0.5, kind, generator=torch.Generator().manual_seed(0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    labels = torch.arange(9) % 5
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.1)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images()), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.endswith("original")


class TestFirstScores:
    def test_edge_popup_is_kaiming_uniform(self):
        model = nn.Sequential(nn.Linear(100, 400), nn.Conv2d(8, 400, 5, groups=2))
        straight_through_(model, 0.5)
        for layer in model:
            scores = learned_mask(layer).scores.detach()
            bound = 1 / math.sqrt(100)
            assert scores.abs().max() <= bound
            assert scores.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)

    @pytest.mark.parametrize("sample", [False, True])
    @pytest.mark.parametrize("sparsity", [0.2, 0.9])
    def test_sigmoid_has_the_sparsity(self, sample, sparsity):
        model = nn.Sequential(nn.Linear(300, 200))
        straight_through_(model, sparsity, "sigmoid", sample=sample)
        assert (model[0].weight == 0).double().mean().item() == pytest.approx(sparsity, abs=0.01)

    def test_follow_from_the_generator_alone(self):
        first, second = network(), network()
        for model in (first, second):
            torch.rand(3)
            straight_through_(model, 0.5, generator=torch.Generator().manual_seed(5))
        assert torch.equal(learned_mask(first[3]).scores, learned_mask(second[3]).scores)


class TestFixing:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("storage", ["compact", "masked"])
    def test_gives_sparse_layers_that_compute_the_same(self, kind, storage):
        model = network()
        model[5].weight.requires_grad_(False)
        straight_through_(model, 0.6, **KINDS[kind])
        with torch.no_grad():
            for name in ("0", "3", "5"):
                learned_mask(model.get_submodule(name)).scores.uniform_(-1, 1)
        expected = model.eval()(images())
        masks = {name: learned_mask(model.get_submodule(name)).mask() for name in ("0", "3", "5")}
        assert all(torch.equal(mask.to_mask(), masks[name]) for name, mask in masks_of(model).items())
        report = fix_learned_masks_(model, storage=storage)
        assert report.nnz == sum(int(mask.sum()) for mask in masks.values())
        torch.testing.assert_close(model(images()), expected, rtol=1e-12, atol=1e-14)
        assert isinstance(model[3], sk.nn.SparseLinear)
        assert not any("scores" in name for name, _ in model.named_parameters())
        assert [model[i].stored_weight.requires_grad for i in (0, 3, 5)] == [True, True, False]
        assert not model[3].training

    def test_of_a_copy_leaves_the_other_as_it_is(self):
        model = network()
        straight_through_(model, 0.6)
        expected = model(images())
        copied = copy.deepcopy(model)
        fix_learned_masks_(copied)
        assert torch.equal(model(images()), expected)
        fix_learned_masks_(model)
        torch.testing.assert_close(model(images()), copied(images()), rtol=0, atol=0)

    def test_shared_weights_have_one_mask(self):
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        model[2].weight = model[0].weight
        assert straight_through_(model, 0.5) == ["0", "2"]
        assert learned_mask(model[0]) is learned_mask(model[2])
        x = torch.randn(3, 6)
        expected = model(x)
        fix_learned_masks_(model)
        assert model[0].values is model[2].values
        torch.testing.assert_close(model(x), expected)

    def test_needs_such_a_layer_and_finite_scores(self):
        with pytest.raises(ValueError, match="model must have a layer of straight_through_, got Sequential"):
            fix_learned_masks_(network())
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 3"):
            fix_learned_masks_(3)
        model = network()
        straight_through_(model, 0.5)
        with torch.no_grad():
            learned_mask(model[3]).scores[0, 0] = torch.nan
        with pytest.raises(FloatingPointError, match="NaN in layer '3'"):
            fix_learned_masks_(model)
        with pytest.raises(ValueError, match="storage must be 'compact' or 'masked', got 'dense'"):
            fix_learned_masks_(model, storage="dense")
        assert learned_mask(model[0]) is not None


def test_state_dicts_carry_the_scores():
    model, other = network(), network()
    straight_through_(model, 0.6)
    straight_through_(other, 0.6)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(images()), other(images()))


def test_sampled_masks_leave_the_generator_alone_at_first():
    model = network()
    straight_through_(model, 0.5, "sigmoid", sample=True, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    model.eval()(images())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, "sparsity must be in"),
        ({"scores": "hard"}, ValueError, "scores must be 'edge_popup' or 'sigmoid', got 'hard'"),
        ({"rank": "sign"}, ValueError, "rank must be 'magnitude' or 'value', got 'sign'"),
        ({"rank": "value", "scores": "sigmoid"}, ValueError, "rank must be left out unless"),
        ({"sample": True}, ValueError, "sample must be left out unless scores='sigmoid'"),
        ({"sample": 1}, TypeError, "sample must be True or False, got 1"),
        ({"scores": "sigmoid", "sparsity": 0}, ValueError, "sparsity must be above 0 with scores='sigmoid'"),
        ({"train_weights": 0}, TypeError, "train_weights must be True or False, got 0"),
        ({"distribution": "x"}, ValueError, "distribution must be"),
        ({"generator": 0}, TypeError, "generator must be"),
        ({"exclude": "fc"}, ValueError, "exclude must be .*, got 'fc'"),
    ],
)
def test_bad_arguments_change_nothing(arguments, error, message):
    model = network()
    with pytest.raises(error, match=message):
        straight_through_(model, **{"sparsity": 0.5, **arguments})
    assert [type(module) for module in model][3] is nn.Linear
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_models_without_a_dense_layer():
    model = network()
    sk.sparsify_(model, sparsity=0.5)
    with pytest.raises(
        ValueError, match="model must have a dense layer, got Sequential, whose layers are sparse"
    ):
        straight_through_(model, 0.5)


def _attribute(model):
    model[3].pattern = "taken"
    return "model must not use attribute names that sparse layers use themselves, got 'pattern' on layer '3'"


def _hook(model):
    model[3].parametrizations.weight.original.requires_grad_().register_hook(lambda grad: None)
    return "gradient hook"


def _another_parametrization(model):
    nn.utils.parametrize.register_parametrization(model[3], "bias", nn.Identity())
    return (
        "model must have no parametrization beside the one of straight_through_, got layer '3' with several"
    )


@pytest.mark.parametrize("spoil", [_attribute, _hook, _another_parametrization])
@pytest.mark.parametrize("train_weights", [False, True])
def test_what_cannot_become_sparse_keeps_its_scores(spoil, train_weights):
    model = network()
    straight_through_(model, 0.5, train_weights=train_weights)
    message = spoil(model)
    before = {name: (p, p.requires_grad) for name, p in model.named_parameters()}
    expected = model(images())
    with pytest.raises(ValueError, match=message):
        fix_learned_masks_(model)
    after = {name: (p, p.requires_grad) for name, p in model.named_parameters()}
    assert after.keys() == before.keys()
    assert all(after[name][0] is p and after[name][1] == trains for name, (p, trains) in before.items())
    assert torch.equal(model(images()), expected)
