"""Runs that start from masks pruned at initialization."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from sparsekern.experiments import run as run_module
from sparsekern.experiments.at_init import masks_at_init
from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.digest import digest
from sparsekern.experiments.errors import ExperimentError, RecipeError
from sparsekern.experiments.recipe import load_recipe
from sparsekern.experiments.run import RunOptions, run
from sparsekern.methods import at_init_masks, masks_of
from sparsekern.nn import SparseLayer
from sparsekern.seeds import generator

METHODS = ["random", "magnitude", "snip", "grasp", "synflow"]
pytestmark = pytest.mark.filterwarnings("ignore:magnitude at sparsity")


def dense(recipe):
    return build_model(recipe.override({"sparsity": 0, "at_init": None}))[0]


def masks(model):
    return {name: pattern.to_mask() for name, pattern in masks_of(model).items()}


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, mask in theirs.items():
        assert torch.equal(ours[name], mask), name


def ten_of_each(digits, count=10):
    chosen = [i for c in range(10) for i in (digits.train_labels == c).nonzero().flatten()[:count].tolist()]
    return digits.train_images[chosen], digits.train_labels[chosen]


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_those_of_the_initial_weights(short_recipe, digits, method):
    recipe = short_recipe.override({"at_init": method, "mask_seed": 4})
    model, twin = build_model(recipe, digits)[0], dense(recipe)
    images, labels = ten_of_each(digits)
    temperature = 200 if method == "grasp" else 1  # as in the paper
    expected = at_init_masks(
        twin,
        method,
        0.95,
        loss=lambda: F.cross_entropy(twin(images) / temperature, labels),
        example=torch.ones(1, 1, 28, 28),
        generator=generator(4, "mask"),
    )
    assert_same(masks(model), expected)
    assert sum(int(mask.sum()) for mask in expected.values()) == round((1 - 0.95) * 44_190)


@pytest.mark.parametrize("method", METHODS)
def test_layers_can_have_their_share_by_distribution(short_recipe, digits, method):
    share = {"at_init_scope": "layer", "distribution": "erk"}
    _, found = build_model(short_recipe.override({"at_init": method, **share}), digits)
    _, expected = build_model(short_recipe.override({"distribution": "erk"}))
    assert [layer.nnz for layer in found.layers] == [layer.nnz for layer in expected.layers]


def test_init_dense_keeps_the_weights_that_were_scored_and_others_draw_new_ones(short_recipe, digits):
    recipe = short_recipe.override({"at_init": "snip", "init": "dense"})
    twin = dense(recipe)
    kept, drawn = (
        build_model(recipe.override({"init": init}), digits)[0] for init in ("dense", "per_neuron")
    )
    assert_same(masks(kept), masks(drawn))
    for name, layer in kept.named_modules():
        if isinstance(layer, SparseLayer):
            weight = twin.get_submodule(name).weight
            assert torch.equal(layer.to_dense(), torch.where(layer.mask, weight, 0))
            assert not torch.equal(layer.to_dense(), drawn.get_submodule(name).to_dense())


def test_examples_are_the_first_of_each_class(short_recipe, digits):
    recipe = short_recipe.override({"at_init": "snip", "at_init_examples": 3})
    model = dense(recipe)
    images, labels = ten_of_each(digits, 3)
    expected = at_init_masks(model, "snip", 0.95, loss=lambda: F.cross_entropy(model(images), labels))
    assert_same(masks(build_model(recipe, digits)[0]), expected)
    other = build_model(recipe.override({"at_init_examples": 4}), digits)[0]
    assert any(not torch.equal(masks(other)[name], mask) for name, mask in expected.items())


def test_more_examples_than_there_are(short_recipe, digits):
    with pytest.raises(
        RecipeError, match=r"at_init_examples must be at most .* the rarest class, 1\d\d, got 200"
    ):
        build_model(short_recipe.override({"at_init": "grasp", "at_init_examples": 200}), digits)


def test_scores_that_are_none_are_one_line(short_recipe, digits):
    broken = dataclasses.replace(digits, train_images=digits.train_images * torch.inf)
    with pytest.raises(
        ExperimentError, match=r"^at_init snip: the scores of method 'snip' must be finite"
    ) as caught:
        build_model(short_recipe.override({"at_init": "snip"}), broken)
    assert "\n" not in str(caught.value)


def test_a_data_set_is_needed_for_these_recipes_alone(short_recipe):
    build_model(short_recipe)
    with pytest.raises(ValueError, match="dataset must be given for a recipe with at_init snip, got None"):
        build_model(short_recipe.override({"at_init": "snip"}))


def test_the_global_generator_and_the_data_stay_as_they_are(short_recipe, digits):
    state, images = torch.get_rng_state(), digits.train_images.clone()
    model = dense(short_recipe)
    masks_at_init(model, digits, short_recipe.override({"at_init": "synflow"}))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(images, digits.train_images)


@pytest.mark.parametrize("method", METHODS)
def test_runs_start_from_them(short_recipe, digits, tmp_path, method):
    recipe = short_recipe.override({"at_init": method, "benchmark_steps": 1})
    said = []
    run(recipe, RunOptions(tmp_path / "run", bar=False), said.append)
    assert f"({method} at initialization, global, compact, per_neuron init)" in said[0]
    state = read_checkpoint(tmp_path / "run" / "checkpoint.pt")["trainer"]["model"]
    for name, pattern in masks_of(build_model(recipe, digits)[0]).items():
        assert torch.equal(state[f"{name}.pattern"], pattern.data)


@pytest.mark.parametrize("changes", [{"method": "static"}, {"method": "rigl", "update_every": 4}], ids=str)
def test_resumed_runs_take_the_masks_of_the_checkpoint(short_recipe, tmp_path, monkeypatch, changes):
    """Bit for bit, also where scoring again would find others."""
    recipe = short_recipe.override({"at_init": "snip", "grow_batch_size": 50, **changes})
    whole, stopped = (RunOptions(tmp_path / name, bar=False) for name in ("whole", "stopped"))
    run(recipe, whole, lambda line: None)

    def save_and_end(trainer, folder):
        save(trainer, folder)
        raise KeyboardInterrupt

    save = run_module._save
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_save", save_and_end)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, stopped, lambda line: None)
    with monkeypatch.context() as patch:
        patch.setattr("sparsekern.experiments.build.masks_at_init", None)
        run(recipe, dataclasses.replace(stopped, resume=True), lambda line: None)
    ours, theirs = (read_checkpoint(o.output / "checkpoint.pt")["trainer"] for o in (stopped, whole))
    for part in ("model", "optimizer", "update_steps"):
        assert digest({part: ours[part]}) == digest({part: theirs[part]})
    assert load_recipe(str(stopped.output / "recipe.yaml")) == recipe


def test_none_is_the_default_and_can_be_asked_for(short_recipe):
    assert load_recipe("lenet5-mnist").at_init is None
    recipe = short_recipe.override({"at_init": "snip"})
    assert recipe.override({"at_init": "none"}) == short_recipe
    with pytest.raises(RecipeError, match=r"at_init must be one of random, magnitude, snip, .*, got 'snipp'"):
        recipe.override({"at_init": "snipp"})
