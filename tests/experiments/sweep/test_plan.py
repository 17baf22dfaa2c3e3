import pytest

from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.sweep.plan import parse_seeds, parse_words, plan_jobs


def test_every_combination_is_a_run_with_a_folder_of_its_own(jobs, tmp_path):
    assert [str(job.folder.relative_to(tmp_path / "sweep")) for job in jobs] == [
        "dense-dense-seed0",
        "rigl-dense-seed0",
        "rigl-per_neuron-seed0",
        "dense-dense-seed1",
        "rigl-dense-seed1",
        "rigl-per_neuron-seed1",
    ]
    for job in jobs:
        recipe = job.recipe
        assert job.folder.name == f"{recipe.method}-{recipe.init}-seed{recipe.seed}"
        assert job.cell == (recipe.method, recipe.init)
        assert (recipe.steps, recipe.benchmark_steps) == (12, 0)


def test_a_network_without_masks_has_one_initialization(short_recipe, tmp_path):
    recipe = short_recipe.override({"sparsity": 0})
    jobs = plan_jobs(recipe, ["static"], ["per_layer", "per_neuron"], [0], tmp_path)
    assert [job.cell for job in jobs] == [("static", "dense")]


@pytest.mark.parametrize("method", ["dense", "small_dense", "sr_ste", "gradual_pruning"])
def test_a_network_that_starts_dense_has_one_initialization(short_recipe, tmp_path, method):
    recipe = short_recipe.override({"prune_begin": 1, "prune_end": 9})
    jobs = plan_jobs(recipe, [method, "static"], ["per_layer", "per_neuron"], [0], tmp_path)
    assert [job.cell for job in jobs] == [
        (method, "dense"),
        ("static", "per_layer"),
        ("static", "per_neuron"),
    ]


def test_a_method_that_does_not_go_with_the_recipe_is_refused_at_once(short_recipe, tmp_path):
    with pytest.raises(RecipeError, match="method rigl needs a sparsity above 0"):
        plan_jobs(short_recipe.override({"sparsity": 0}), ["rigl"], ["dense"], [0], tmp_path)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [3]), ("0-2", [0, 1, 2]), ("0-2,7", [0, 1, 2, 7]), ("5, 1-1,5", [5, 1])],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "2-0", "1-", "-1", "1,,2", "1.5", "0-9999999999"])
def test_other_seeds_are_refused(text):
    with pytest.raises(RecipeError, match=r"^--seeds must be whole numbers and ranges such as 0-2,7, got "):
        parse_seeds(text)


def test_more_seeds_than_anyone_wants_are_refused():
    assert parse_seeds("5-10004") == list(range(5, 10_005))
    for text in ["0-999999999", "0-9999,10000"]:
        with pytest.raises(RecipeError, match=r"^--seeds must be at most 10,000 seeds, got "):
            parse_seeds(text)


def test_words_are_choices_of_the_key():
    assert parse_words("rigl, set,rigl", "method") == ["rigl", "set"]
    with pytest.raises(
        RecipeError, match=r"^--inits must be of dense, per_layer, per_neuron, .*, got 'ours'$"
    ):
        parse_words("dense,ours", "init")
