"""How a run of a sweep ended, and where runs of an earlier call stand."""

from dataclasses import dataclass
from typing import Any

from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.folder import Result, RunFolder
from sparsekern.experiments.sweep.plan import Job


@dataclass(frozen=True)
class Outcome:
    """A finished run has a result, a failed one an error."""

    job: Job
    result: Result | None = None
    error: str = ""

    def summary(self) -> dict[str, Any]:
        """Its entry in ``summary.json``."""
        recipe = self.job.recipe
        entry = {"method": recipe.method, "init": recipe.init, "seed": recipe.seed}
        entry |= {"folder": self.job.folder.name, "digest": recipe.digest}
        if self.result is None:
            return entry | {"status": "failed", "error": self.error}
        return entry | {
            "status": "finished",
            "test_accuracy": self.result.test_accuracy,
            "test_loss": self.result.test_loss,
            "seconds": self.result.seconds,
        }


def earlier_outcome(job: Job) -> Outcome | None:
    """The outcome of a run that is finished already, well or with a damaged result; None for others.

    Raises
    ------
    ExperimentError
        If the folder holds a run of another recipe, finished or not: those of this one would go in its place.
    """
    folder = RunFolder(job.folder)
    if folder.recipe.exists():
        try:
            theirs = folder.read_recipe()
        except ExperimentError as error:
            return Outcome(job, error=str(error))
        folder.refuse_another(job.recipe, theirs)
    if not folder.result.exists():
        return None
    try:
        return Outcome(job, folder.read_result())
    except ExperimentError as error:
        return Outcome(job, error=str(error))
