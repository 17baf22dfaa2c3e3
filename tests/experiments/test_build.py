import pytest
import torch

from sparsekern.experiments.build import build_model
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
