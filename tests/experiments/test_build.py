import re

import pytest
import torch

from sparsekern.experiments.build import build_model
from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.recipe import load_recipe
from sparsekern.nn import SparseLayer

SHAPES = {"conv1": 150, "conv2": 2400, "fc1": 30_720, "fc2": 10_080, "fc3": 840}


@pytest.fixture
def recipe():
    return load_recipe("lenet5-mnist")


def layers(recipe):
    model, _ = build_model(recipe)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


def test_every_weight_is_masked_with_exact_counts_and_biases_are_dense(recipe):
    model, report = build_model(recipe)
    sparse = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    assert {name: layer.pattern.nnz for name, layer in sparse.items()} == {
        name: round(0.05 * numel) for name, numel in SHAPES.items()
    }
    assert report.numel == 44_190
    assert sum(p.numel() for p in model.parameters()) == report.nnz + 236
    assert all(layer.bias.eq(0).all() for layer in sparse.values())


def test_sparsity_zero_is_the_dense_network(recipe):
    model, report = build_model(recipe.override({"sparsity": 0}))
    assert report is None
    assert not any(isinstance(module, SparseLayer) for module in model.modules())


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_total_sparsity_holds_for_every_distribution(recipe, distribution):
    _, report = build_model(recipe.override({"distribution": distribution}))
    assert report.sparsity == pytest.approx(0.95, abs=1e-3)


def test_masks_and_initial_weights_have_seeds_of_their_own(recipe):
    base = layers(recipe)
    other_init = layers(recipe.override({"init_seed": 5}))
    other_mask = layers(recipe.override({"mask_seed": 5, "init": "dense"}))
    dense = layers(recipe.override({"init": "dense"}))
    assert base["fc1"].pattern == other_init["fc1"].pattern
    assert not torch.equal(base["fc1"].values, other_init["fc1"].values)
    assert dense["fc1"].pattern != other_mask["fc1"].pattern
    common = dense["fc1"].mask & other_mask["fc1"].mask
    assert common.any()
    assert torch.equal(dense["fc1"].to_dense()[common], other_mask["fc1"].to_dense()[common])


def test_dense_init_is_the_dense_network_masked(recipe):
    dense, _ = build_model(recipe.override({"sparsity": 0}))
    for name, layer in layers(recipe.override({"init": "dense"})).items():
        weight = dense.get_submodule(name).weight
        assert torch.equal(layer.to_dense(), torch.where(layer.mask, weight, 0))


def test_compact_and_masked_storage_start_from_the_same_weights(recipe):
    for init in ("dense", "per_layer", "per_neuron"):
        compact = layers(recipe.override({"init": init}))
        masked = layers(recipe.override({"init": init, "storage": "masked"}))
        for name in SHAPES:
            assert torch.equal(compact[name].to_dense(), masked[name].to_dense())


def test_the_three_inits_differ_in_scale(recipe):
    spread = {
        i: layers(recipe.override({"init": i}))["fc1"].values.std().item() for i in ("dense", "per_layer")
    }
    # Liu et al. divide by the square root of the density: sqrt(20) at 95 %.
    assert spread["per_layer"] / spread["dense"] == pytest.approx(20**0.5, rel=0.1)


def test_global_generator_is_neither_read_nor_moved(recipe):
    state = torch.get_rng_state()
    first = layers(recipe)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first["conv2"].values, layers(recipe)["conv2"].values)


@pytest.mark.parametrize(("method", "weights"), [("dense", 44_190), ("small_dense", 2_399 - 63)])
def test_dense_methods_ignore_sparsity_and_masks(recipe, method, weights):
    model, report = build_model(recipe.override({"method": method, "masks": "nowhere.pt"}))
    assert report is None
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == weights


def test_a_network_that_is_pruned_starts_dense_on_masked_weights(recipe):
    dense, _ = build_model(recipe.override({"sparsity": 0}))
    model, report = build_model(recipe.override({"method": "gradual_pruning", "init": "per_layer"}))
    assert report.sparsity == 0
    for name in SHAPES:
        layer = model.get_submodule(name)
        assert (layer.storage, layer.pattern.sparsity) == ("masked", 0.0)
        assert torch.equal(layer.weight, dense.get_submodule(name).weight)


class TestGivenMasks:
    @pytest.fixture
    def path(self, recipe, tmp_path):
        model, _ = build_model(recipe.override({"mask_seed": 9}))
        torch.save(model.state_dict(), tmp_path / "other.pt")
        return tmp_path / "other.pt"

    def test_are_those_of_the_file_and_weights_are_drawn_for_them(self, recipe, path):
        given = layers(recipe.override({"masks": str(path)}))
        expected = layers(recipe.override({"mask_seed": 9}))
        other = layers(recipe.override({"mask_seed": 9, "init_seed": 5}))
        for name, layer in given.items():
            assert layer.pattern == expected[name].pattern
            assert torch.equal(layer.values, expected[name].values)
            assert not torch.equal(layer.values, other[name].values)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": "mlp"}, "expected masks for the layers of mlp (fc1, fc2, fc3), found conv1, conv2, "),
            ({"model": "small-lenet5"}, "expected shape (3, 1, 5, 5) for conv1 of small-lenet5, found (6, 1"),
            ({"sparsity": 0.9}, "expected the recipe's sparsity, 0.9, found 0.9500"),
        ],
    )
    def test_of_another_network_or_sparsity_are_one_line(self, recipe, path, changes, message):
        with pytest.raises(ExperimentError, match=re.escape(f"masks {path}: {message}")) as caught:
            build_model(recipe.override({"masks": str(path), **changes}))
        assert "\n" not in str(caught.value)

    def test_that_are_not_there_are_one_line(self, recipe, tmp_path):
        with pytest.raises(ExperimentError, match=r"masks .*nothing\.pt: cannot be read: No such file"):
            build_model(recipe.override({"masks": str(tmp_path / "nothing.pt")}))

    def test_that_are_none_are_one_line(self, recipe, tmp_path):
        path = tmp_path / "masks.pt"
        path.write_text("hello")
        with pytest.raises(ExperimentError, match=r"masks .*masks\.pt: expected masks") as caught:
            build_model(recipe.override({"masks": str(path)}))
        assert "\n" not in str(caught.value)
