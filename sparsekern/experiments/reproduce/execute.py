"""Doing the runs that are not done, several at a time, each after the run it takes its mask from."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.folder import Result
from sparsekern.experiments.reproduce.runs import FRESH, PaperRun, unique
from sparsekern.experiments.sweep.listener import RunListener
from sparsekern.experiments.sweep.outcome import Outcome, earlier_outcome
from sparsekern.experiments.sweep.overview import Overview
from sparsekern.experiments.sweep.plan import Job
from sparsekern.experiments.sweep.pool import work_off
from sparsekern.experiments.sweep.sweep import SweepStopped
from sparsekern.files import write_atomically

DIVERGED = "diverged.json"


@dataclass(frozen=True)
class PaperJob(Job):
    """A run of the paper, in its place."""

    role: str

    @property
    def words(self) -> tuple[str, ...]:
        recipe = self.recipe
        return recipe.network, self.role, recipe.init, f"seed {recipe.seed % FRESH}"


@dataclass(frozen=True)
class Ended:
    """How a run of the paper ended.

    Attributes
    ----------
    run : PaperRun
    result : Result or None
        None for a run that diverged or failed.
    error : str
    diverged : bool
        Whether the loss became infinite or NaN: such a run counts as a network that has learnt nothing.
    """

    run: PaperRun
    result: Result | None = None
    error: str = ""
    diverged: bool = False


class Runs:
    """The folder of all runs.

    Parameters
    ----------
    folder : Path
        Made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def path(self, run: PaperRun) -> Path:
        """A run's own folder."""
        return self.folder / run.folder

    def ended(self, run: PaperRun) -> Ended | None:
        """How a run ended that is done already; None for one that is to be done or carried on.

        Raises
        ------
        ExperimentError
            If its folder holds another recipe's run, or one that cannot be read.
        """
        marker = self.path(run) / DIVERGED
        if marker.exists():
            return Ended(run, error=_read_marker(marker, run.recipe.digest), diverged=True)
        outcome = earlier_outcome(self._job(run))
        if outcome is None:
            return None
        if outcome.result is None:
            raise ExperimentError(outcome.error)
        return Ended(run, outcome.result)

    def do(
        self,
        runs: Sequence[PaperRun],
        workers: int,
        data_dir: Path | None,
        stream: TextIO | None = None,
        live: bool | None = None,
    ) -> dict[str, Ended]:
        """Do what is left of ``runs`` and of those they need, and say how all of them ended, by folder.

        Raises
        ------
        ExperimentError
            Before anything is done, if a folder holds something else.
        SweepStopped
            After SIGINT or SIGTERM, with the states of runs saved.
        """
        stream = sys.stdout if stream is None else stream
        runs = unique(runs)
        ended = {run.folder: done for run in runs if (done := self.ended(run))}
        waiting = [run for run in runs if run.folder not in ended]
        if not waiting:
            return ended
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExperimentError(f"--output {self.folder}: cannot be made: {error.strerror}") from None
        jobs = {run.folder: self._job(run) for run in runs}
        earlier = [Outcome(jobs[name], e.result, e.error) for name, e in ended.items()]
        live = stream.isatty() if live is None else live
        overview = Overview("reproduce", list(jobs.values()), earlier, stream, live)
        listener = _Listener(overview, {jobs[run.folder]: run for run in waiting}, self, ended)
        try:
            for wave in ([r for r in waiting if r.source is None], [r for r in waiting if r.source]):
                ready = [run for run in wave if listener.has_source(run)]
                received = work_off([jobs[r.folder] for r in ready], workers, data_dir, listener, self.folder)
                if received and len(ended) < len(jobs):
                    raise SweepStopped(received, len(jobs) - len(ended), len(jobs))
        finally:
            overview.close()
        return ended

    def _job(self, run: PaperRun) -> PaperJob:
        return PaperJob(run.recipe, self.path(run), run.role)


class _Listener(RunListener):
    """Turns what the workers say into ends of runs, and lines."""

    def __init__(
        self, overview: Overview, runs: Mapping[Job, PaperRun], home: Runs, ended: dict[str, Ended]
    ) -> None:
        super().__init__(overview)
        self._runs = runs
        self._home = home
        self._ended = ended

    def has_source(self, run: PaperRun) -> bool:
        """Whether the run's mask is there; if it is not, the run is over."""
        source = run.source and self._ended.get(run.source.folder)
        if source is None or source.result is not None:
            return True
        self._end(run, error=f"its mask is missing: the pruning run {run.source.folder} did not end well")
        return False

    def ended(self, job: Job, result: Result | None, error: str, diverged: bool) -> None:
        self._end(self._runs[job], result, error, diverged)

    def _end(
        self, run: PaperRun, result: Result | None = None, error: str = "", diverged: bool = False
    ) -> None:
        if diverged:
            content = json.dumps({"digest": run.recipe.digest, "error": error}, indent=2) + "\n"
            write_atomically(self._home.path(run) / DIVERGED, content.encode())
        self._ended[run.folder] = Ended(run, result, error, diverged)
        self.overview.ended(Outcome(self._home._job(run), result, error))


def _read_marker(path: Path, digest: str) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, error = content["digest"], str(content["error"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ExperimentError(
            f"{path}: expected the note of a run that diverged; remove it to run again"
        ) from None
    if found != digest:
        raise ExperimentError(f"{path}: expected a run of the recipe {digest}, found one of {found}")
    return error
