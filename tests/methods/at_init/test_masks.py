"""Masks before training: exact counts, rounds, scopes, what is refused, and that nothing else changes."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.methods import at_init_masks
from sparsekern.methods.at_init import (
    grasp_scores,
    magnitude_scores,
    random_scores,
    snip_scores,
    synflow_scores,
)

METHODS = ["random", "magnitude", "snip", "grasp", "synflow"]
NAMES = ["0", "3", "7", "9"]
IMAGE = torch.ones(1, 2, 8, 8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def count(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def numel(masks):
    return sum(mask.numel() for mask in masks.values())


@pytest.fixture
def prune(loss_of):
    """Masks by any method, with all that some of them need."""

    def run(model, method, sparsity, **options):
        keywords = {"loss": loss_of(model), "example": IMAGE, "generator": generator(), **options}
        return at_init_masks(model, method, sparsity, **keywords)

    return run


@pytest.fixture
def scores_of(loss_of):
    def run(model, method):
        if method in ("snip", "grasp"):
            return {"snip": snip_scores, "grasp": grasp_scores}[method](model, loss_of(model))
        if method == "synflow":
            return synflow_scores(model, IMAGE)
        return (
            magnitude_scores(model) if method == "magnitude" else random_scores(model, generator=generator())
        )

    return run


def largest(scores, kept, masks=None):
    """The masks of the `kept` largest scores, by a stable sort of all."""
    if masks is not None:
        scores = {name: torch.where(masks[name], score, -torch.inf) for name, score in scores.items()}
    order = torch.cat([s.flatten() for s in scores.values()]).sort(descending=True, stable=True).indices
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[:kept]] = True
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts)}


def assert_masks(found, expected):
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert found[name].dtype == torch.bool
        assert torch.equal(found[name], mask), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6])
def test_the_largest_scores_stay_in_exact_numbers(dense_network, prune, scores_of, method, sparsity):
    model = dense_network(activation=nn.ReLU)
    rounds = {"rounds": 1} if method == "synflow" else {}
    masks = prune(model, method, sparsity, **rounds)
    assert list(masks) == NAMES
    assert count(masks) == round((1 - sparsity) * numel(masks))
    assert_masks(masks, largest(scores_of(model, method), count(masks)))


@pytest.mark.parametrize("method", METHODS)
def test_sparsify_takes_them_and_keeps_the_weights(dense_network, prune, method):
    model = dense_network()
    weights = {name: model[int(name)].weight.detach().clone() for name in NAMES}
    masks = prune(model, method, 0.8, exclude=["9"])
    report = sk.sparsify_(model, masks=masks)
    assert list(masks) == NAMES[:3]
    assert report.nnz == round(0.2 * report.numel)
    for name, mask in masks.items():
        assert torch.equal(model[int(name)].mask, mask)
        assert torch.equal(model[int(name)].to_dense(), torch.where(mask, weights[name], 0))
    assert type(model[9]) is nn.Linear


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_each_layer_can_have_its_own_number(dense_network, prune, scores_of, method, distribution):
    model = dense_network(activation=nn.ReLU)
    masks = prune(model, method, 0.7, scope="layer", distribution=distribution)
    shapes = [tuple(mask.shape) for mask in masks.values()]
    shares = sk.methods.layer_sparsities(shapes, 0.7, distribution)
    assert [int(mask.sum()) for mask in masks.values()] == [
        round((1 - share) * mask.numel()) for share, mask in zip(shares, masks.values())
    ]
    if method != "synflow":
        for name, score in scores_of(model, method).items():
            assert_masks({name: masks[name]}, largest({name: score}, int(masks[name].sum())))


class TestRounds:
    def test_synflow_prunes_a_little_a_hundred_times(self, dense_network):
        """Against the authors' loop: scores of the masked network, density ** (k / rounds), a sort."""
        model = dense_network(activation=nn.ReLU)
        masked = {name: torch.ones_like(model[int(name)].weight, dtype=torch.bool) for name in NAMES}
        total = numel(masked)
        twin = dense_network(activation=nn.ReLU)
        for step in range(1, 101):
            kept = round((1 - 0.9) ** (step / 100) * total)
            masked = largest(synflow_scores(twin, IMAGE), kept, masked)
            with torch.no_grad():
                for name, mask in masked.items():
                    twin[int(name)].weight.mul_(mask)
        masks = at_init_masks(model, "synflow", 0.9, example=IMAGE)
        assert_masks(masks, masked)
        with pytest.warns(UserWarning, match="method='synflow' with its many rounds"):
            once = at_init_masks(model, "synflow", 0.9, example=IMAGE, rounds=1)
        assert any(not torch.equal(once[name], mask) for name, mask in masks.items())

    def test_iterative_snip_sees_each_network_on_the_way(self, dense_network, loss_of):
        model = dense_network()
        weights = [model[int(name)].weight for name in NAMES]
        total = sum(weight.numel() for weight in weights)
        loss = loss_of(model)
        seen = []

        def watched():
            seen.append([(weight != 0).clone() for weight in weights])
            return loss()

        masks = at_init_masks(model, "snip", 0.9, loss=watched, rounds=5)
        left = [sum(int(mask.sum()) for mask in step) for step in seen]
        assert left == [round((1 - 0.9) ** (k / 5) * total) for k in range(5)]
        for before, after in zip(seen, [*seen[1:], list(masks.values())]):
            assert all((old | ~new).all() for old, new in zip(before, after))
        with torch.no_grad():
            for weight, mask in zip(weights, seen[-1]):
                weight.mul_(mask)
        last = dict(zip(NAMES, seen[-1]))
        assert_masks(masks, largest(snip_scores(model, loss), round((1 - 0.9) * total), last))

    def test_weights_are_back_in_place_when_a_round_fails(self, dense_network, loss_of, snapshot):
        model = dense_network(norm=True)
        before = snapshot(model)
        calls = []

        def fails():
            calls.append(int((model[7].weight != 0).sum()))
            if len(calls) == 3:
                raise RuntimeError("no data")
            return loss_of(model)()

        with pytest.raises(RuntimeError, match="no data"):
            at_init_masks(model, "snip", 0.9, loss=fails, rounds=4)
        assert calls[2] < calls[1] < calls[0]
        before.check()

    @pytest.mark.parametrize("method", ["random", "magnitude", "grasp"])
    def test_are_refused_where_scores_stay_the_same(self, dense_network, prune, method):
        with pytest.raises(
            ValueError, match=r"rounds must be left out unless method is .*, got 1 \(int\) with"
        ):
            prune(dense_network(), method, 0.5, rounds=1)


class TestCollapse:
    """At 99 %, other scores leave nothing of whole layers here."""

    def network(self):
        torch.manual_seed(0)
        sizes = [40, 200, 200, 30, 200, 10]
        layers = [
            module
            for i, o in itertools.pairwise(sizes)
            for module in (nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU())
        ]
        return nn.Sequential(*layers[:-2]), torch.randn(64, 40), torch.randint(10, (64,))

    def test_synflow_leaves_something_of_every_layer(self):
        model, x, _ = self.network()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            masks = at_init_masks(model, "synflow", 0.99, example=x[:1])
        assert count(masks) == round(0.01 * numel(masks))
        assert min(int(mask.sum()) for mask in masks.values()) > 1

    @pytest.mark.parametrize("method", ["magnitude", "synflow"])
    def test_others_keep_one_weight_of_a_layer_and_say_so(self, method):
        model, x, _ = self.network()
        with pytest.warns(
            UserWarning, match=f"{method} at sparsity 0.99.* takes every weight of '"
        ) as caught:
            masks = at_init_masks(
                model, method, 0.999, example=x[:1], **({"rounds": 1} if method == "synflow" else {})
            )
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert count(masks) == round(0.001 * numel(masks))
        single = [name for name, mask in masks.items() if mask.sum() == 1]
        assert single
        scores = magnitude_scores(model) if method == "magnitude" else synflow_scores(model, x[:1])
        for name in single:
            assert masks[name].flatten()[scores[name].argmax()]
            assert repr(name) in str(caught[0].message)

    def test_at_least_one_weight_a_layer(self, dense_network):
        with pytest.warns(UserWarning, match="takes every weight"):
            masks = at_init_masks(dense_network(), "magnitude", 0.999)
        assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1, 1]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes(dense_network, prune, snapshot, loss_of, method):
    model = dense_network(norm=True)
    model[3].weight.requires_grad_(False)
    loss_of(model)().backward()
    before = snapshot(model)
    prune(model, method, 0.5)
    before.check()


def test_masks_are_the_same_again_and_under_no_grad(dense_network, prune):
    for method in METHODS:
        model = dense_network()
        expected = prune(model, method, 0.8)
        with torch.no_grad():
            assert_masks(prune(model, method, 0.8), expected)


class TestScoresThatAreNone:
    @pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow"])
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_are_an_error_with_the_layer_and_advice(self, dense_network, prune, snapshot, method, value):
        model = dense_network()
        with torch.no_grad():
            model[9].weight[2, 3] = value
        before = snapshot(model)
        where = "9" if method == "magnitude" else r"\d"
        with pytest.raises(
            FloatingPointError,
            match=rf"scores of method '{method}' must be finite, got .* in layer '{where}': \w",
        ):
            prune(model, method, 0.5)
        if method != "magnitude":
            before.check()

    @pytest.mark.parametrize("method", ["magnitude", "snip", "grasp", "synflow"])
    def test_zero_everywhere_is_an_error(self, dense_network, prune, method):
        model = dense_network()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        with pytest.raises(ValueError, match=f"scores of method '{method}' must tell weights apart, got 0"):
            prune(model, method, 0.5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "obd"}, ValueError, "method must be 'random' or .*, got 'obd'"),
        ({"method": None}, TypeError, "method must be .*, got None"),
        ({"sparsity": 1.0}, ValueError, r"sparsity must be in \[0, 1\)"),
        ({"sparsity": True}, TypeError, r"sparsity must be a number in \[0, 1\)"),
        ({"scope": "local"}, ValueError, "scope must be 'global' or 'layer', got 'local'"),
        ({"distribution": "even"}, ValueError, "distribution must be 'uniform' or"),
        (
            {"distribution": "erk"},
            ValueError,
            "distribution must be left out unless scope='layer', got 'erk'",
        ),
        ({"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
        ({"rounds": 2.0}, TypeError, "rounds must be an integer, got 2.0"),
        ({"loss": None}, ValueError, "loss must be given with method='snip', got None"),
        ({"loss": 3}, TypeError, "loss must be a function without arguments"),
        ({"method": "grasp", "loss": None}, ValueError, "loss must be given with method='grasp', got None"),
        ({"method": "synflow", "example": None}, ValueError, "example must be given with method='synflow'"),
        ({"method": "synflow", "example": 3}, TypeError, "example must be a floating-point tensor"),
        ({"method": "random", "generator": 3}, TypeError, "generator must be a torch.Generator or None"),
        ({"exclude": ["x"]}, ValueError, "exclude must be names .*, got 'x', which matches none"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_arguments(dense_network, prune, snapshot, changes, error, message):
    model = dense_network()
    before = snapshot(model)
    arguments = {"method": "snip", "sparsity": 0.5, **changes}
    with pytest.raises(error, match=message):
        prune(model, arguments.pop("method"), arguments.pop("sparsity"), **arguments)
    before.check()


def test_arguments_that_a_method_does_not_need_are_left_alone(dense_network):
    def never():
        raise AssertionError("called")

    at_init_masks(dense_network(), "magnitude", 0.5, loss=never, example="none")


def test_names_given_once_are_enough(dense_network, prune):
    """An iterator is used up after one look."""
    masks = prune(dense_network(), "grasp", 0.5, exclude=iter(["7"]))
    assert list(masks) == ["0", "3", "9"]
