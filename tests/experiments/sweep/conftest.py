import pytest

from sparsekern.experiments.folder import Result
from sparsekern.experiments.sweep.outcome import Outcome
from sparsekern.experiments.sweep.plan import plan_jobs


@pytest.fixture
def jobs(short_recipe, tmp_path):
    """Dense and rigl, from two initializations and two seeds: 2 + 4 runs."""
    recipe = short_recipe.override({"update_every": 5, "grow_batch_size": 50})
    return plan_jobs(recipe, ["dense", "rigl"], ["dense", "per_neuron"], [0, 1], tmp_path / "sweep")


@pytest.fixture
def finished():
    """A function that makes a finished outcome of a job."""

    def outcome(job, accuracy):
        recipe = job.recipe
        return Outcome(job, Result(recipe.name, recipe.digest, recipe.steps, accuracy, 0.5, 61.4))

    return outcome
