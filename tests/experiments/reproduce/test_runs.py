"""The paper's runs: what they are of, and that their addresses follow from that alone."""

import dataclasses
import re

import pytest
import torch

from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import read_checkpoint, save_checkpoint
from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.recipe import load_recipe, recipe_keys
from sparsekern.experiments.reproduce.runs import FRESH, PaperRun, PaperRuns, Scale, unique
from sparsekern.experiments.resume import run_state
from sparsekern.experiments.trainer import Trainer
from sparsekern.nn import SparseLayer


def paper(seeds=range(5), network="lenet5", **scale):
    return PaperRuns(network, list(seeds), Scale(**scale))


def all_runs(runs):
    return [*runs.accuracy_table(), *runs.inverted(), *(run for g in runs.solutions().values() for run in g)]


def test_full_runs_are_the_recipe_of_the_paper_and_what_they_write():
    for network, every in (("lenet5", 100), ("mlp", 500)):
        recipe = paper(network=network).sparse("rigl", "per_neuron", 0).recipe
        theirs = load_recipe(f"{network}-mnist")
        changed = {name for name, value in recipe.settings().items() if value != theirs.settings()[name]}
        records = {"log_every", "evaluate_every", "checkpoint_every", "gradient_flow_every"}
        assert changed <= records | {"method", "init", "seed", "masks"}
        assert (recipe.steps, recipe.update_every) == (11_719, every)
        prune = paper(network=network).prune(0).recipe
        assert (prune.prune_begin, prune.prune_end, prune.update_every) == (3000, 7000, 100)


def test_growth_is_by_other_examples_than_the_flow_is_measured_on():
    """Of the runs that read it; addresses of others do not have it."""
    runs = paper()
    for run in all_runs(runs):
        grows = run.recipe.method in ("rigl", "rigl_inverted")
        assert run.recipe.grow_batch_start == (1000 if grows else 0)
        assert run.recipe.gradient_flow_examples == 1000
    assert load_recipe("lenet5-mnist").grow_batch_start == load_recipe("mlp-mnist").grow_batch_start == 1000
    assert paper(quick=True, dataset="digits").sparse("rigl", "dense", 0).recipe.grow_batch_start == 0


def test_changes_are_in_all_runs_and_their_addresses():
    changed = paper(changes={"weight_decay": "0", "steps": 7100})
    for mine, theirs in zip(all_runs(changed), all_runs(paper()), strict=True):
        assert (mine.recipe.weight_decay, mine.recipe.steps) == (0, 7100)
        assert mine.folder != theirs.folder
    with pytest.raises(RecipeError, match=r"prune_end must be .* at most steps"):
        paper(changes={"steps": 6999}).prune(0)


def test_runs_of_equal_starts_are_known():
    runs = paper()
    solutions = runs.solutions()
    assert len({run.start for run in solutions["lottery"]}) == 1
    assert len({run.start for run in solutions["scratch"]}) == 1
    assert len({run.start for run in solutions["scratch_other_init"]}) == 5
    assert solutions["scratch"][0].start != solutions["lottery"][0].start
    assert runs.lottery(0).start != runs.lottery(1).start
    assert runs.restart(0, of=0).start == runs.restart(1, of=0).start != runs.restart(0, of=1).start


def test_quick_runs_are_short_and_prune_in_time():
    prune = paper(quick=True, dataset="digits").prune(0).recipe
    assert (prune.dataset, prune.steps, prune.update_every) == ("digits", 400, 10)
    assert (prune.prune_begin, prune.prune_end) == (100, 240)
    assert paper(quick=True).sparse("rigl", "dense", 0).recipe.update_every == 40


def test_the_accuracy_table_has_thirteen_runs_a_seed():
    runs = paper().accuracy_table()
    assert len(runs) == len({run.folder for run in runs}) == 13 * 5
    roles = [run.role for run in runs[:13]]
    assert roles == ["prune", "dense", "lottery", "small_dense", *["scratch", "set", "rigl"] * 3]
    assert {run.recipe.seed for run in runs if run.role in ("prune", "dense", "small_dense")} == set(range(5))
    assert {run.recipe.seed for run in runs if run.source} == {FRESH + seed for seed in range(5)}
    for run in runs:
        assert (run.source is None) == (run.recipe.masks is None)
        if run.source:
            assert run.recipe.masks == f"{run.source.folder}/checkpoint.pt"
            assert run.source.recipe.seed == run.recipe.seed - FRESH
            assert run.source.role == "prune"


def test_equal_recipes_have_one_folder_whoever_asks_for_them():
    first, again = paper(), paper(range(2, 7))
    for mine, theirs in zip(all_runs(first), all_runs(paper())):
        assert (mine.folder, mine.recipe) == (theirs.folder, theirs.recipe)
    assert first.prune(3).folder == again.prune(3).folder
    assert (
        first.sparse("static", "per_neuron", 3).folder == first.sparse("static", "per_neuron", 3, of=3).folder
    )
    assert first.lottery(0).folder == first.solutions()["lottery"][0].folder


def test_addresses_are_told_apart_by_all_that_matters():
    runs = paper()
    folders = [
        runs.prune(0), runs.prune(1), runs.dense(0), runs.small_dense(0), runs.lottery(0), runs.lottery(1),
        runs.lottery(1, of=0), runs.restart(0, of=0), runs.restart(0, of=1), runs.restart(1, of=0),
        runs.sparse("static", "dense", 0), runs.sparse("static", "per_layer", 0),
        runs.sparse("static", "per_neuron", 0), runs.sparse("static", "per_neuron", 1),
        runs.sparse("static", "per_neuron", 1, of=0), runs.sparse("static", "per_neuron", 1, of=0, init_of=0),
        runs.sparse("set", "per_neuron", 0), runs.sparse("rigl", "per_neuron", 0), runs.inverted()[0],
        paper(network="mlp").prune(0), paper(quick=True).prune(0), paper(dataset="digits").prune(0),
    ]  # fmt: skip
    assert len({run.folder for run in folders}) == len(folders)
    for run in folders:
        form = rf"{run.recipe.network}-{run.recipe.method}-{run.recipe.digest}"
        assert run.folder == form
        assert re.fullmatch(r"(small-)?(lenet5|mlp)-[a-z_]+-[0-9a-f]{12}", run.folder)


@pytest.mark.parametrize("name", ["learning_rate", "data_seed", "steps", "distribution", "log_every"])
def test_a_source_that_differs_changes_the_addresses_of_all_that_need_it(name):
    changes = {name: {"distribution": "erk", "learning_rate": 0.01}.get(name, 9000)}
    assert name in recipe_keys()

    class Other(Scale):
        def base(self, network):
            return super().base(network).override(changes)

    mine, theirs = paper(), PaperRuns("lenet5", range(5), Other())
    for run, other in zip(all_runs(mine), all_runs(theirs)):
        assert run.folder != other.folder


def test_addresses_do_not_depend_on_where_one_is(tmp_path, monkeypatch):
    before = [(run.folder, run.recipe.masks, run.recipe.weights) for run in all_runs(paper())]
    monkeypatch.chdir(tmp_path)
    assert [(run.folder, run.recipe.masks, run.recipe.weights) for run in all_runs(paper())] == before


def test_solutions_are_of_the_first_seed_s_mask():
    runs = paper([3, 4, 5])
    groups = runs.solutions()
    assert {name: len(group) for name, group in groups.items()} == dict.fromkeys(groups, 3)
    for name in ("lottery", "scratch", "scratch_other_init", "restart"):
        assert {run.source.folder for run in groups[name]} == {runs.prune(3).folder}
        assert [run.recipe.seed_of("data") for run in groups[name]] == [1003, 1004, 1005]
    assert {run.recipe.seed_of("init") for run in groups["lottery"]} == {3}
    assert {run.recipe.seed_of("init") for run in groups["scratch"]} == {1003}
    assert [run.recipe.seed_of("init") for run in groups["scratch_other_init"]] == [1003, 1004, 1005]
    assert {run.recipe.weights for run in groups["restart"]} == {f"{runs.prune(3).folder}/checkpoint.pt"}
    assert [run.folder for run in groups["pruned"]] == [runs.prune(seed).folder for seed in (3, 4, 5)]


def test_unique_has_sources_first_and_nothing_twice():
    runs = paper()
    asked = [runs.restart(1, of=0), runs.lottery(2), *runs.accuracy_table(), runs.lottery(2)]
    found = unique(asked)
    places = {run.folder: place for place, run in enumerate(found)}
    assert len(places) == len(found) == 13 * 5 + 1
    assert {run.folder for run in asked} <= places.keys()
    assert all(places[run.source.folder] < places[run.folder] for run in found if run.source)
    assert unique([]) == []


def test_the_ticket_starts_from_the_masked_initial_weights_of_its_pruning_run(
    tiny, digits, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    prune = tiny.prune(0)
    model, _ = build_model(prune.recipe)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(model, digits, prune.recipe)
    for _ in range(12):
        trainer.train_step()
    checkpoint = tmp_path / prune.folder / "checkpoint.pt"
    checkpoint.parent.mkdir()
    save_checkpoint(checkpoint, run_state(trainer))
    pruned = read_checkpoint(checkpoint)["trainer"]["model"]

    def start(run: PaperRun, weights: dict) -> list[bool]:
        built, _ = build_model(run.recipe)
        layers = {name: module for name, module in built.named_modules() if isinstance(module, SparseLayer)}
        assert len(layers) == 5
        for name, layer in layers.items():
            assert torch.equal(layer.mask, pruned[f"{name}.weight"] != 0)
        return [
            torch.equal(layer.to_dense(), torch.where(layer.mask, weights[f"{name}.weight"], 0))
            for name, layer in layers.items()
        ]

    assert all(start(tiny.lottery(0), initial))
    assert all(start(tiny.lottery(1, of=0), initial))
    assert all(start(tiny.restart(0, of=0), pruned))
    for init in ("dense", "per_layer", "per_neuron"):
        assert not any(start(tiny.sparse("static", init, 0), initial))
    same = [tiny.sparse("static", "per_neuron", seed, of=0, init_of=0) for seed in (0, 1)]
    values = [build_model(run.recipe)[0].fc1.values for run in same]
    assert torch.equal(*values)


@pytest.mark.parametrize("seed", [-1, FRESH])
def test_seeds_that_would_be_those_of_other_runs_are_refused(seed):
    with pytest.raises(RecipeError, match=f"^seeds must be from 0 to 999, got {seed}$"):
        paper([0, seed])


def test_runs_are_values():
    run = paper().lottery(0)
    assert run == paper().lottery(0)
    assert hash(run) == hash(paper().lottery(0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.role = "other"
