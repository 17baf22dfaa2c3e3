"""What workers say, as lines and as ends of runs."""

from typing import Any

from sparsekern.experiments.folder import Result
from sparsekern.experiments.sweep.overview import Overview
from sparsekern.experiments.sweep.plan import Job


class RunListener:
    """Passes on how runs go; what becomes of one that has ended is for a subclass to say.

    Parameters
    ----------
    overview : Overview
        Shows it.
    """

    def __init__(self, overview: Overview) -> None:
        self.overview = overview

    def ended(self, job: Job, result: Result | None, error: str, diverged: bool) -> None:
        """A run has a result, or an error."""
        raise NotImplementedError

    def message(self, job: Job, message: dict[str, Any]) -> None:
        """A job's worker said something."""
        kind = message["kind"]
        if kind == "progress":
            self.overview.progress(job, **{name: value for name, value in message.items() if name != "kind"})
        elif kind == "stopped":
            self.overview.stopped(job, message.get("step"))
        else:
            result = Result(**message["result"]) if kind == "finished" else None
            self.ended(job, result, message.get("error", ""), bool(message.get("diverged")))

    def tick(self) -> None:
        """A moment has passed."""
        self.overview.tick()
