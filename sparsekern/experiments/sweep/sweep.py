"""A sweep from its plan to its summary."""

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sparsekern.experiments.build import build_model
from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.folder import Result
from sparsekern.experiments.recipe import Recipe
from sparsekern.experiments.sweep.listener import RunListener
from sparsekern.experiments.sweep.outcome import Outcome, earlier_outcome
from sparsekern.experiments.sweep.overview import Overview
from sparsekern.experiments.sweep.plan import Job, plan_jobs
from sparsekern.experiments.sweep.pool import work_off
from sparsekern.experiments.sweep.table import CAPTION, summary_data, summary_text, table
from sparsekern.files import write_atomically


@dataclass(frozen=True)
class Sweep:
    """What to run, and where."""

    recipe: Recipe
    overrides: dict[str, Any]
    methods: Sequence[str]
    inits: Sequence[str]
    seeds: Sequence[int]
    output: Path
    workers: int
    data_dir: Path | None = None


class SweepStopped(Exception):
    """A signal ended the sweep early; the runs that were under way have saved their states."""

    def __init__(self, received: signal.Signals, left: int, total: int) -> None:
        super().__init__(f"stopped by {received.name} with {left} of {total} runs left")
        self.received = received


def run_sweep(sweep: Sweep, stream: TextIO | None = None, live: bool | None = None) -> list[Outcome]:
    """Do all runs that are not done, write ``summary.md`` and ``summary.json``, and print the table.

    Runs with a result are left alone, and those with a checkpoint carry on from it. A run that fails does not
    stop the others.

    Parameters
    ----------
    sweep : Sweep
        The runs.
    stream : TextIO, optional
        Where to write; standard output if None.
    live : bool, optional
        Whether lines can be written over; None asks whether ``stream`` is a terminal.

    Raises
    ------
    ExperimentError
        Before anything is done, where the recipe, the data or the masks are wrong for all runs, or the folder
        holds runs of another recipe.
    SweepStopped
        After SIGINT or SIGTERM.
    """
    stream = sys.stdout if stream is None else stream
    jobs = plan_jobs(sweep.recipe, sweep.methods, sweep.inits, sweep.seeds, sweep.output)
    outcomes = {outcome.job: outcome for outcome in map(earlier_outcome, jobs) if outcome}
    waiting = [job for job in jobs if job not in outcomes]
    if waiting:
        _check(waiting, sweep.data_dir)
        _make_folder(sweep.output)
    live = stream.isatty() if live is None else live
    overview = Overview(sweep.recipe.name, jobs, list(outcomes.values()), stream, live)
    listener = _Listener(overview, outcomes)
    try:
        received = work_off(waiting, sweep.workers, sweep.data_dir, listener)
    finally:
        overview.close()
    if received and len(outcomes) < len(jobs):
        raise SweepStopped(received, len(jobs) - len(outcomes), len(jobs))
    return _summarize(sweep, [outcomes[job] for job in jobs], stream)


class _Listener(RunListener):
    """Turns what the workers say into outcomes and lines."""

    def __init__(self, overview: Overview, outcomes: dict[Job, Outcome]) -> None:
        super().__init__(overview)
        self._outcomes = outcomes

    def ended(self, job: Job, result: Result | None, error: str, diverged: bool) -> None:
        outcome = self._outcomes[job] = Outcome(job, result, error)
        self.overview.ended(outcome)


def _check(jobs: Sequence[Job], data_dir: Path | None) -> None:
    """Find now what would fail in all runs: data that is not there, masks for another network."""
    recipe = jobs[0].recipe
    dataset = load_dataset(recipe.dataset, data_dir, **recipe.data_options)
    sparse = [job.recipe for job in jobs if job.recipe.is_sparse]
    if sparse:
        build_model(sparse[0], dataset)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(f"--output {path}: the folder cannot be made: {error.strerror}") from None


def _summarize(sweep: Sweep, outcomes: list[Outcome], stream: TextIO) -> list[Outcome]:
    text = summary_text(sweep.recipe, sweep.overrides, outcomes)
    data = summary_data(sweep.recipe, sweep.overrides, outcomes)
    write_atomically(sweep.output / "summary.md", text.encode())
    write_atomically(sweep.output / "summary.json", (json.dumps(data, indent=2) + "\n").encode())
    print(f"\n{sweep.recipe.name}: {CAPTION}\n\n{table(outcomes)}\n", file=stream)
    print(f"saved in {sweep.output / 'summary.md'} and summary.json", file=stream, flush=True)
    return outcomes
