import pytest

from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.pipeline.plan import load_pipeline, pipeline_keys, pipeline_names


def test_the_pipelines_that_come_along():
    assert pipeline_names() == ["pipeline-digits", "pipeline-mnist"]
    for name in pipeline_names():
        pipeline = load_pipeline(name)
        assert pipeline.name == name
        assert pipeline.sparse.at_init
        assert pipeline.sparse.updates_masks
        assert pipeline.refine.is_two_four
        assert pipeline.refine.at_init is None


def test_keys_of_recipes_reach_all_stages_that_train():
    pipeline = load_pipeline("pipeline-digits", {"seed": "3", "batch_size": "32", "transposable": "true"})
    for recipe in (pipeline.sparse, pipeline.refine):
        assert (recipe.seed, recipe.batch_size, recipe.transposable) == (3, 32, True)


def test_the_last_stages_have_keys_of_their_own():
    changes = {
        "refine_method": "ste",
        "refine_steps": "7",
        "refine_learning_rate": "0.5",
        "activations": "static",
    }
    pipeline = load_pipeline("pipeline-digits", {**changes, "steps": "100"})
    assert (pipeline.refine.method, pipeline.refine.steps, pipeline.refine.learning_rate) == ("ste", 7, 0.5)
    assert pipeline.sparse.steps == 100
    assert pipeline.last.activations == "static"
    assert pipeline.settings() == {
        **pipeline.settings(),
        "activations": "static",
        "refine_steps": 7,
        "steps": 100,
    }


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("pipeline-mnits", {}, "unknown pipeline 'pipeline-mnits'; did you mean pipeline-mnist"),
        ("pipeline-digits", {"refine_step": 3}, "unknown key 'refine_step'; did you mean refine_steps"),
        (
            "pipeline-digits",
            {"refine_method": "rigl"},
            "refine_method must be one of sr_ste, ste, two_four_fixed",
        ),
        ("pipeline-digits", {"refine_steps": 0}, "refine_steps must be at least 1, got 0"),
        ("pipeline-digits", {"activations": "int4"}, "activations must be one of dynamic, static"),
        (
            "pipeline-digits",
            {"at_init": "none"},
            "need at_init and a method for unstructured masks, got at_init none",
        ),
        ("pipeline-digits", {"method": "ste"}, "and method ste"),
        ("pipeline-digits", {"method": "dense"}, "and method dense"),
    ],
)
def test_mistakes(name, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_pipeline(name, overrides)


def test_every_key_says_what_it_is():
    assert all(key.about for key in pipeline_keys().values())
