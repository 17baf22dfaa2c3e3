"""Magnitude masks: exact counts, the largest of what is left, ties to the lowest index."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.methods import at_init_masks, layer_sparsities, magnitude_masks


def network(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 9, (3, 2), groups=3),
        nn.Flatten(),
        nn.Linear(9 * 6 * 7, 11),
        nn.Linear(11, 5),
    ).to(dtype)


NAMES = ["0", "2", "4", "5"]


def weights(model):
    return {name: model.get_submodule(name).weight.detach() for name in NAMES}


def by_sorting(scores, count):
    """The first `count` of a stable sort: ties to the lowest index."""
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def density(masks):
    return sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.983])
@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_each_layer_keeps_its_largest_in_its_own_number(sparsity, distribution):
    model = network()
    found = magnitude_masks(model, sparsity, distribution=distribution)
    assert list(found) == NAMES
    shares = layer_sparsities([w.shape for w in weights(model).values()], sparsity, distribution)
    for (name, weight), share in zip(weights(model).items(), shares):
        expected = by_sorting(weight.abs().flatten(), round((1 - share) * weight.numel()))
        assert torch.equal(found[name].flatten(), expected)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_over_all_layers_the_largest_stay(sparsity):
    model = network()
    found = magnitude_masks(model, sparsity, scope="global")
    flat = torch.cat([w.abs().flatten() for w in weights(model).values()])
    expected = by_sorting(flat, round((1 - sparsity) * len(flat)))
    assert torch.equal(torch.cat([mask.flatten() for mask in found.values()]), expected)


def test_are_those_of_at_init():
    model = network()
    for options in ({"scope": "global"}, {"scope": "layer", "distribution": "erk"}):
        ours, theirs = (
            magnitude_masks(model, 0.8, **options),
            at_init_masks(model, "magnitude", 0.8, **options),
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in NAMES)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ties_go_to_the_lowest_index(scope):
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False))
    for layer in model:
        nn.init.constant_(layer.weight, -0.25)
    expected = {"layer": [[1] * 6 + [0] * 6] * 2, "global": [[1] * 11 + [0], [1] + [0] * 11]}[scope]
    if scope == "global":
        with pytest.warns(UserWarning, match="magnitude at sparsity 0.5 takes every weight of '1'"):
            found = magnitude_masks(model, 0.5, scope=scope)
    else:
        found = magnitude_masks(model, 0.5)
    assert [mask.flatten().int().tolist() for mask in found.values()] == expected


class TestWhatIsPrunedAlready:
    @pytest.mark.parametrize("storage", ["compact", "masked"])
    @pytest.mark.parametrize("scope", ["layer", "global"])
    def test_stays_pruned_and_counts(self, storage, scope):
        model, sparse = network(), network()
        first = magnitude_masks(model, 0.5, scope=scope)
        sk.sparsify_(sparse, masks={name: first[name] for name in ("0", "4")}, storage=storage)
        found = magnitude_masks(sparse, 0.8, scope=scope)
        expected = magnitude_masks(model, 0.8, scope=scope)
        assert all(torch.equal(found[name], expected[name]) for name in NAMES)

    def test_is_not_ranked_even_where_all_that_is_left_is_zero(self):
        model = nn.Sequential(nn.Linear(4, 2, bias=False))
        mask = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]]).bool()
        sk.sparsify_(model, masks={"0": mask})
        nn.init.zeros_(model[0].values)
        assert magnitude_masks(model, 0.75)["0"].int().tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]

    def test_values_at_pruned_positions_of_a_masked_weight_do_not_count(self):
        model = nn.Sequential(nn.Linear(4, 1, bias=False))
        sk.sparsify_(model, masks={"0": torch.tensor([[True, True, False, False]])}, storage="masked")
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1.0, 2.0, 30.0, 40.0]]))
        assert magnitude_masks(model, 0.75)["0"].int().tolist() == [[0, 1, 0, 0]]

    def test_layers_with_fewer_left_keep_them_and_the_total_is_exact(self):
        model = network()
        sk.sparsify_(model, masks={"4": sk.Pattern.random((11, 378), 0.95)})
        found = magnitude_masks(model, 0.9)
        kept, numel = density(found)
        assert kept == round(0.1 * numel)
        assert torch.equal(found["4"], model[4].mask)
        assert int(found["5"].sum()) > round(0.1 * 55)

    @pytest.mark.parametrize("scope", ["layer", "global"])
    def test_an_empty_layer_stays_empty(self, scope):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        sk.sparsify_(model, masks={"0": torch.zeros(4, 4, dtype=torch.bool)})
        found = magnitude_masks(model, 0.75, scope=scope)
        assert [int(mask.sum()) for mask in found.values()] == [0, 8]

    def test_a_sparsity_below_it_is_refused(self):
        model = network()
        sk.sparsify_(model, sparsity=0.9)
        with pytest.raises(
            ValueError, match=r"sparsity must be at least what the layers have .*, 0\.899977, got 0\.5"
        ):
            magnitude_masks(model, 0.5)


def test_shared_weights_are_there_once_and_excluded_ones_are_not():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    sk.sparsify_(model, masks={"3": torch.ones(3, 3, dtype=torch.bool)})
    found = magnitude_masks(model, 0.5, exclude=["3"])
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"0": 18, "2": 9}
    assert list(magnitude_masks(model, 0.5, exclude="2")) == ["0", "3"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    model = network()
    with torch.no_grad():
        model[4].weight[3, 5] = value
    with pytest.raises(FloatingPointError, match="in layer '4': give the layer finite weights"):
        magnitude_masks(model, 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0,), ValueError, r"sparsity must be in \[0, 1\)"),
        (("0.5",), TypeError, "sparsity must be a number"),
        ((0.5, {"scope": "model"}), ValueError, "scope must be 'global' or 'layer', got 'model'"),
        ((0.5, {"distribution": "cubic"}), ValueError, "distribution must be 'uniform' or"),
        (
            (0.5, {"scope": "global", "distribution": "erk"}),
            ValueError,
            "distribution must be left out unless scope='layer', got 'erk'",
        ),
        ((0.5, {"exclude": ["fc"]}), ValueError, "exclude must be .*, got 'fc'"),
        ((0.5, {"exclude": 3}), TypeError, "exclude must be .*, got 3"),
        ((0.5, {"exclude": ["*"]}), ValueError, "model must have an nn.Linear or nn.Conv2d to convert"),
    ],
)
def test_bad_arguments(arguments, error, message):
    sparsity, options = arguments[0], (arguments[1] if len(arguments) > 1 else {})
    with pytest.raises(error, match=message):
        magnitude_masks(network(), sparsity, **options)


def test_models_with_nothing_to_prune():
    with pytest.raises(TypeError, match="model must be a module that contains layers, got 3"):
        magnitude_masks(3, 0.5)
    model = nn.Sequential(nn.Linear(8, 8))
    sk.sparsify_(model, pattern="2:4")
    with pytest.raises(ValueError, match="model must have a layer to prune"):
        magnitude_masks(model, 0.5)
