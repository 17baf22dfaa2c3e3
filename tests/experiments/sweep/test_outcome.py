import dataclasses
import json

import pytest

from sparsekern.experiments.errors import ExperimentError
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


@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "unfinished"])
def test_a_run_of_another_recipe_ends_the_sweep_and_names_the_keys(is_finished, jobs, finished):
    write_run(jobs[0], jobs[0].recipe.override({"steps": 99}), finished(jobs[0], 0.5).result)
    if not is_finished:
        (jobs[0].folder / "result.json").unlink()
    with pytest.raises(ExperimentError, match="holds a run of another recipe: steps: 99 there, 12 here"):
        earlier_outcome(jobs[0])


def test_a_damaged_result_is_a_failure(jobs, finished):
    write_run(jobs[0], jobs[0].recipe, finished(jobs[0], 0.5).result)
    (jobs[0].folder / "result.json").write_text("{")
    outcome = earlier_outcome(jobs[0])
    assert outcome.result is None
    assert "expected the result of a run" in outcome.error


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
