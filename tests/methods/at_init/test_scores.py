"""Scores against their definitions: derivatives by masks, by hand, and by moving one weight at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

import sparsekern as sk
from sparsekern.methods.at_init import grasp_scores, magnitude_scores, random_scores, snip_scores

NAMES = ["0", "3", "7", "9"]
BY_LOSS = {"snip": snip_scores, "grasp": grasp_scores}


def assert_scores(found, expected, rtol=1e-10):
    assert list(found) == list(expected)
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=rtol, atol=1e-14)


def flow(loss, weights):
    """The squared norm of the gradient."""
    return sum(float(g.square().sum()) for g in torch.autograd.grad(loss(), weights))


class TestSnip:
    def test_of_a_quadratic_by_hand(self):
        """``L = (w.x - t)^2 / 2`` at ``w = (1, -2)``, ``x = (3, 1)``, ``t = 5``: ``g = -4 x``."""
        model = nn.Sequential(nn.Linear(2, 1, bias=False, dtype=torch.float64))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1.0, -2.0]]))
        x = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
        scores = snip_scores(model, lambda: (model(x) - 5).square().sum() / 2)
        assert scores["0"].tolist() == [[12.0, 8.0]]

    def test_is_the_derivative_by_a_mask_of_ones(self, dense_network, loss_of):
        model = dense_network()
        masks = {name: torch.ones_like(model[int(name)].weight, requires_grad=True) for name in NAMES}
        masked = {f"{name}.weight": model[int(name)].weight.detach() * mask for name, mask in masks.items()}
        loss_of(lambda images: functional_call(model, masked, (images,)))().backward()
        assert_scores(
            snip_scores(model, loss_of(model)), {name: mask.grad.abs() for name, mask in masks.items()}
        )

    def test_several_batches_are_summed(self, dense_network, loss_of):
        model = dense_network()
        losses = [loss_of(model, seed=seed) for seed in (1, 2)]
        model.zero_grad()
        sum(loss() for loss in losses).backward()
        expected = {n: (model[int(n)].weight * model[int(n)].weight.grad).abs().detach() for n in NAMES}
        assert_scores(snip_scores(model, lambda: sum(loss() for loss in losses)), expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_products_of_other_dtypes_are_exact(self, dense_network, loss_of, dtype):
        model = dense_network(dtype)
        loss_of(model, dtype)().backward()
        for name, score in snip_scores(model, loss_of(model, dtype)).items():
            weight = model[int(name)].weight
            assert score.dtype == torch.float64
            assert torch.equal(score, (weight.detach().double() * weight.grad.double()).abs())


class TestGrasp:
    def quadratic(self):
        """``L = w.T A w / 2`` at ``w = (1, -2)``: ``g = A w = (0, -5)``, ``A g = (-5, -15)``."""
        model = nn.Sequential(nn.Linear(2, 1, bias=False, dtype=torch.float64))
        matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1.0, -2.0]]))
        return model, lambda: model[0].weight[0] @ matrix @ model[0].weight[0] / 2

    def test_of_a_quadratic_by_hand(self):
        model, loss = self.quadratic()
        assert grasp_scores(model, loss)["0"].tolist() == [[-5.0, 30.0]]

    def test_keeps_the_weight_without_which_the_flow_would_shrink(self):
        """The flow is 25; without the first weight it is 40, without the second one 5."""
        flows = []
        for removed in (None, 0, 1):
            model, loss = self.quadratic()
            if removed is not None:
                with torch.no_grad():
                    model[0].weight[0, removed] = 0
            flows.append(flow(loss, [model[0].weight]))
        assert flows == [25.0, 40.0, 5.0]
        model, loss = self.quadratic()
        masks = sk.methods.at_init_masks(model, "grasp", 0.5, loss=loss)
        assert masks["0"].tolist() == [[False, True]]

    @pytest.mark.parametrize("exclude", [(), ("7",)], ids=["all", "without_one"])
    def test_is_half_the_loss_of_flow_as_each_weight_shrinks(self, dense_network, loss_of, exclude):
        """``-w_j`` times the flow's derivative by ``w_j``, found by moving that weight alone."""
        model = dense_network()
        loss = loss_of(model)
        scores = grasp_scores(model, loss, exclude=exclude)
        weights = [model[int(name)].weight for name in scores]
        step = 1e-5
        for name, score in scores.items():
            vector = model[int(name)].weight.data.view(-1)
            change = torch.empty(len(vector), dtype=torch.float64)
            for j, value in enumerate(vector.tolist()):
                vector[j] = value * (1 - step)
                smaller = flow(loss, weights)
                vector[j] = value * (1 + step)
                change[j] = (smaller - flow(loss, weights)) / (2 * step)
                vector[j] = value
            torch.testing.assert_close(score.view(-1), -change / 2, rtol=1e-5, atol=1e-9)
            assert (score > 0).any()
            assert (score < 0).any()

    def test_removing_the_worst_raises_the_flow_and_the_best_lowers_it(self, dense_network, loss_of):
        model = dense_network()
        loss = loss_of(model)
        weights = [model[int(name)].weight for name in NAMES]
        scores = torch.cat([score.view(-1) for score in grasp_scores(model, loss).values()])
        vectors = [weight.data.view(-1) for weight in weights]
        before, flows = flow(loss, weights), []
        for position in (int(scores.argmin()), int(scores.argmax())):
            for vector in vectors:
                if position < len(vector):
                    break
                position -= len(vector)
            value = vector[position].item()
            vector[position] = 0
            flows.append(flow(loss, weights))
            vector[position] = value
        assert flows[0] > before > flows[1]

    def test_of_attention(self):
        """The fast kernels of `scaled_dot_product_attention` have no second derivatives; the formula has."""

        class Attention(nn.Module):
            def __init__(self, attend):
                super().__init__()
                self.project, self.last = nn.Linear(8, 24), nn.Linear(8, 3)
                self.attend = attend

            def forward(self, x):
                heads = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.project(x).chunk(3, -1)]
                return self.last(self.attend(*heads).transpose(1, 2).flatten(2).mean(1))

        def formula(query, key, value):
            return (query @ key.mT / 2).softmax(-1) @ value

        x = torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(0))
        scores = []
        for attend in (nn.functional.scaled_dot_product_attention, formula):
            torch.manual_seed(0)
            model = Attention(attend)
            scores.append(grasp_scores(model, lambda model=model: model(x).square().sum()))
        for name in ("project", "last"):
            torch.testing.assert_close(scores[0][name], scores[1][name], rtol=1e-4, atol=1e-5)
            assert scores[0][name].abs().max() > 1e-2

    def test_of_a_loss_linear_in_the_weights_is_zero(self):
        model = nn.Sequential(nn.Linear(3, 2))
        scores = grasp_scores(model, lambda: model(torch.ones(1, 3)).sum())
        assert torch.equal(scores["0"], torch.zeros(2, 3, dtype=torch.float64))


class TestMagnitudeAndRandom:
    def test_magnitude(self, dense_network):
        model = dense_network(torch.bfloat16)
        assert_scores(
            magnitude_scores(model), {name: model[int(name)].weight.detach().abs() for name in NAMES}, rtol=0
        )

    def test_random_follows_from_the_generator_alone(self, dense_network, snapshot):
        model = dense_network()
        before = snapshot(model)
        draws = [random_scores(model, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
        before.check()
        assert_scores(draws[0], draws[1], rtol=0)
        for name in NAMES:
            assert not torch.equal(draws[0][name], draws[2][name])
            assert draws[0][name].shape == model[int(name)].weight.shape
            assert (0 <= draws[0][name]).all()
            assert (draws[0][name] < 1).all()

    def test_random_takes_the_global_generator_by_default(self, dense_network):
        model = dense_network()
        torch.manual_seed(5)
        first = random_scores(model)
        torch.manual_seed(5)
        assert_scores(random_scores(model), first, rtol=0)


@pytest.mark.parametrize("method", BY_LOSS)
class TestByLoss:
    def test_shared_weights_are_scored_once_with_their_whole_gradient(self, method):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 5, bias=False, dtype=torch.float64),
            nn.Tanh(),
            nn.Linear(5, 5, bias=False, dtype=torch.float64),
        )
        model[2].weight = model[0].weight
        x = torch.randn(4, 5, dtype=torch.float64)
        scores = BY_LOSS[method](model, lambda: model(x).square().sum())
        assert list(scores) == ["0"]
        weight = model[0].weight.detach()

        def loss(w):
            return ((x @ w.T).tanh() @ w.T).square().sum()

        gradient = torch.func.grad(loss)(weight)
        if method == "snip":
            expected = (weight * gradient).abs()
        else:
            along = torch.func.grad(lambda w: (torch.func.grad(loss)(w) * gradient).sum())
            expected = weight * along(weight)
        torch.testing.assert_close(scores["0"], expected, rtol=1e-10, atol=1e-12)

    def test_frozen_weights_are_scored_and_stay_frozen(self, dense_network, loss_of, snapshot, method):
        expected = BY_LOSS[method](model := dense_network(), loss_of(model))
        model[3].weight.requires_grad_(False)
        before = snapshot(model)
        assert_scores(BY_LOSS[method](model, loss_of(model)), expected, rtol=0)
        before.check()

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_works_where_gradients_are_off(self, dense_network, loss_of, method, context):
        model = dense_network()
        expected = BY_LOSS[method](model, loss_of(model))
        loss = loss_of(model)
        with context():
            assert_scores(BY_LOSS[method](model, loss), expected, rtol=0)
            assert not torch.is_grad_enabled()

    def test_a_weight_without_effect_scores_zero(self, dense_network, loss_of, method):
        model = nn.ModuleDict({"net": dense_network(), "other": nn.Linear(3, 3)})
        scores = BY_LOSS[method](model, loss_of(model["net"]))
        assert list(scores) == ["net.0", "net.3", "net.7", "net.9", "other"]
        assert torch.equal(scores["other"], torch.zeros(3, 3, dtype=torch.float64))

    def test_sparse_layers_take_part_and_are_not_scored(self, dense_network, loss_of, method):
        model = dense_network()
        masks = {"3": torch.rand(8, 3, 3, 2) < 0.5}
        with torch.no_grad():
            model[3].weight.mul_(masks["3"])
        expected = BY_LOSS[method](model, loss_of(model), exclude=["3"])
        sk.sparsify_(model, masks=masks)
        assert_scores(BY_LOSS[method](model, loss_of(model)), expected)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_nothing_changes(self, dense_network, loss_of, snapshot, method, seed):
        model = dense_network(norm=True)
        loss_of(model)().backward()
        torch.manual_seed(seed)
        before = snapshot(model)
        BY_LOSS[method](model, loss_of(model))
        before.check()

    def test_nothing_changes_when_the_loss_fails(self, dense_network, loss_of, snapshot, method):
        model = dense_network(norm=True)
        model[7].weight.requires_grad_(False)
        before = snapshot(model)

        def fails():
            loss_of(model)()
            model.eval()
            raise RuntimeError("no data")

        with pytest.raises(RuntimeError, match="no data"):
            BY_LOSS[method](model, fails)
        before.check()

    @pytest.mark.parametrize(
        ("loss", "error", "message"),
        [
            (3, TypeError, r"loss must be a function without arguments that returns the loss, got 3 \(int\)"),
            (lambda: 1.5, TypeError, r"loss must return a scalar that requires a gradient, got 1\.5"),
            (lambda: torch.ones(2, requires_grad=True), TypeError, r"a scalar .*, got a .* of shape \(2,\)"),
            (lambda: torch.ones(()), TypeError, r"loss must return a scalar that requires a gradient, got a"),
            (
                lambda: torch.ones((), requires_grad=True) * 1,
                ValueError,
                r"loss must depend on the weights of the model's layers \(0, 3, 7, 9\), got one that depends",
            ),
        ],
        ids=["number", "float", "vector", "constant", "elsewhere"],
    )
    def test_bad_losses(self, dense_network, snapshot, method, loss, error, message):
        model = dense_network()
        before = snapshot(model)
        with pytest.raises(error, match=message):
            BY_LOSS[method](model, loss)
        before.check()


ALL = {
    "random": random_scores,
    "magnitude": magnitude_scores,
    "snip": lambda model, **kw: snip_scores(model, lambda: model(torch.ones(1, 3)).sum(), **kw),
}


@pytest.mark.parametrize("method", ALL)
class TestTheLayers:
    def test_are_those_that_sparsify_converts(self, method):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
                self.embedding = nn.Embedding(3, 3)
                self.tied = nn.Linear(3, 3)
                self.tied.weight = self.embedding.weight
                self.again = self.one

            def forward(self, x):
                return self.tied(self.two(self.again(self.one(x))))

        scores = ALL[method](Net(), exclude=["tw*"])
        report = sk.sparsify_(Net(), sparsity=0.5, exclude=["tw*"])
        assert list(scores) == [layer.name for layer in report.layers if layer.reason is None] == ["one"]

    @pytest.mark.parametrize(
        ("model", "error", "message"),
        [
            (3, TypeError, "model must be a module that contains layers, got 3"),
            (nn.Linear(3, 3), TypeError, "got a single Linear, which cannot replace itself"),
            (nn.ReLU(), ValueError, "must have an nn.Linear or nn.Conv2d to convert, got ReLU with none"),
            (nn.Sequential(sk.nn.SparseLinear(3, 3, sparsity=0.5)), ValueError, "layers are sparse already"),
            (nn.Sequential(nn.Linear(3, 3, device="meta")), ValueError, r"0\.weight must be a tensor with"),
        ],
        ids=["number", "single", "none", "sparse", "meta"],
    )
    def test_of_other_models_are_refused(self, method, model, error, message):
        with pytest.raises(error, match=message):
            ALL[method](model)

    def test_excluded_names_that_are_none(self, method):
        with pytest.raises(ValueError, match=r"exclude must be names .*, got '5', which matches none"):
            ALL[method](nn.Sequential(nn.Linear(3, 3)), exclude=["5"])


def test_a_factor_on_the_loss_leaves_the_order(dense_network, loss_of):
    """A factor on the loss scales SNIP by itself and GraSP by its square, so orders stay as they are."""
    model = dense_network()
    loss = loss_of(model)
    for score, power in ((snip_scores, 1), (grasp_scores, 2)):
        base, scaled = score(model, loss), score(model, lambda: 3 * loss())
        assert_scores(scaled, {name: math.pow(3, power) * value for name, value in base.items()})
