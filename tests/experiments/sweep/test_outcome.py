import dataclasses
import json

from sparsekern.experiments.sweep.outcome import Outcome, earlier_outcome


def write_run(job, recipe, result):
    job.folder.mkdir(parents=True)
    (job.folder / "recipe.yaml").write_text(recipe.to_yaml())
    (job.folder / "result.json").write_text(json.dumps(dataclasses.asdict(result)))


def test_a_finished_run_is_found_and_an_unfinished_one_is_not(jobs, finished):
    assert earlier_outcome(jobs[0]) is None
    expected = finished(jobs[0], 0.5)
    write_run(jobs[0], jobs[0].recipe, expected.result)
    assert earlier_outcome(jobs[0]) == expected


def test_a_run_of_another_recipe_is_a_failure_that_names_the_keys(jobs, finished):
    write_run(jobs[0], jobs[0].recipe.override({"steps": 99}), finished(jobs[0], 0.5).result)
    outcome = earlier_outcome(jobs[0])
    assert outcome.result is None
    assert "holds a run of another recipe: steps: 99 there, 12 here" in outcome.error


def test_summaries_have_a_status(jobs, finished):
    assert finished(jobs[2], 0.25).summary() == {
        "method": "rigl",
        "init": "per_neuron",
        "seed": 0,
        "folder": "rigl-per_neuron-seed0",
        "digest": jobs[2].recipe.digest,
        "status": "finished",
        "test_accuracy": 0.25,
        "test_loss": 0.5,
        "seconds": 61.4,
    }
    failed = Outcome(jobs[2], error="no").summary()
    assert (failed["status"], failed["error"]) == ("failed", "no")
    assert "test_accuracy" not in failed
