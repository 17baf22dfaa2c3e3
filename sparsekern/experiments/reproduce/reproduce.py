"""From the names of tables and figures to a report: runs first, then measurements, then pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparsekern.experiments.data import InMemoryDataset, load_dataset
from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.reproduce.document import Report, RunEntry, Section, Table
from sparsekern.experiments.reproduce.execute import Ended, Runs
from sparsekern.experiments.reproduce.origin import claim
from sparsekern.experiments.reproduce.paper import DEVIATIONS
from sparsekern.experiments.reproduce.plots import require_matplotlib
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import FRESH, NETWORKS, PaperRuns, Scale, unique
from sparsekern.experiments.reproduce.targets import TARGETS
from sparsekern.experiments.reproduce.write import read_report, write_report
from sparsekern.experiments.sweep.table import environment
from sparsekern.files import exclusive


@dataclass(frozen=True)
class Reproduction:
    """What to reproduce, and where.

    Attributes
    ----------
    names : sequence of str
        Keys of `TARGETS`.
    seeds : sequence of int
    output : Path
    workers : int
    data_dir : Path or None
        The folder of MNIST; None for the bundled digits.
    quick : bool
    changes : mapping of str to Any
        Of keys of the recipe, in all runs.
    """

    names: Sequence[str]
    seeds: Sequence[int]
    output: Path
    workers: int
    data_dir: Path | None = None
    quick: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> Scale:
        """The length of runs and their data."""
        return Scale(self.quick, "digits" if self.data_dir is None else "mnist", self.changes)


def reproduce(wanted: Reproduction) -> tuple[dict[str, Path], list[Ended]]:
    """Do the runs that are not done, measure what is not measured, and write the report.

    Returns
    -------
    dict of str to Path
        The report's files.
    list of Ended
        The runs that failed; those that diverged are results.

    Raises
    ------
    ExperimentError
        Before anything is done, where data or folders are wrong.
    SweepStopped
        After SIGINT or SIGTERM, with the states of runs saved.
    """
    require_matplotlib()
    _refuse_another(wanted)
    paper = {network: PaperRuns(network, wanted.seeds, wanted.scale) for network in NETWORKS}
    dataset = load_dataset(wanted.scale.dataset, wanted.data_dir)
    with _alone_in(wanted.output):
        return _reproduce(wanted, paper, dataset)


def _reproduce(
    wanted: Reproduction, paper: Mapping[str, PaperRuns], dataset: InMemoryDataset
) -> tuple[dict[str, Path], list[Ended]]:
    runs = unique(run for name in wanted.names for run in TARGETS[name].runs(paper))
    home = Runs(wanted.output / "runs")
    claim(home.folder, dataset)
    ended = home.do(runs, wanted.workers, wanted.data_dir)
    results = Results(
        paper=paper,
        runs=home,
        ended=ended,
        dataset=dataset,
        measurements=wanted.output / "measurements",
        quick=wanted.quick,
        say=lambda text: print(text, file=sys.stdout, flush=True),
    )
    sections = [section for name in wanted.names for section in TARGETS[name].sections(results)]
    report = _report(wanted, sections, list(ended.values()))
    try:
        files = write_report(report, wanted.output)
    except OSError as error:
        raise ExperimentError(
            f"{error.filename or wanted.output}: cannot be written: {error.strerror}"
        ) from None
    return files, [end for end in ended.values() if end.result is None and not end.diverged]


def _refuse_another(wanted: Reproduction) -> None:
    """Raise ExperimentError where the output has a report of the other length, full or quick."""
    path = wanted.output / "results.json"
    try:
        found = read_report(path).quick
    except ExperimentError:
        return  # no report, or one that is of no use
    if found != wanted.quick:
        kinds = {True: "a quick reproduction", False: "a full reproduction"}
        raise ExperimentError(
            f"--output {wanted.output} holds {kinds[found]}, expected {kinds[wanted.quick]} or none: name "
            "another folder"
        )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two at once would write one report, and each other's runs."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(folder / ".lock"))
        except BlockingIOError:
            raise ExperimentError(
                f"--output {folder} is in use by another sparsekern reproduce: wait for it, or name another "
                "folder"
            ) from None
        except OSError as error:
            reason = error.strerror or error
            raise ExperimentError(f"--output {folder}: cannot be written: {reason}") from None
        yield


def _report(wanted: Reproduction, sections: list[Section], ended: Sequence[Ended]) -> Report:
    seeds = ", ".join(map(str, wanted.seeds))
    where = ", ".join(f"{name} {version}" for name, version in environment().items())
    seconds = sum(end.result.seconds for end in ended if end.result)
    duration = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"
    data = "the digits of scikit-learn, not MNIST" if wanted.data_dir is None else "MNIST"
    summary = [
        "Tables and figures of Evci, Ioannou, Keskin and Dauphin, “Gradient Flow in Sparse Neural Networks "
        f"and How Lottery Tickets Win” (AAAI 2022), made again by sparsekern on {data}: {len(ended)} runs of "
        f"seeds {seeds}, {duration} of training on one thread each ({where}).",
    ]
    if wanted.changes:
        changes = ", ".join(f"{key} = {value}" for key, value in wanted.changes.items())
        summary.append(f"Not the paper's settings: {changes} in all runs.")
    if wanted.quick or wanted.data_dir is None:
        summary.append("Values of the paper stand beside for orientation: they are of full runs on MNIST.")
    return Report(
        "Gradient flow in sparse neural networks: a reproduction",
        wanted.quick,
        summary,
        [*sections, _deviations()],
        [_entry(end) for end in ended],
    )


def _entry(end: Ended) -> RunEntry:
    run, result = end.run, end.result
    outcome = "diverged" if end.diverged else "failed" if result is None else "finished"
    recipe = run.recipe
    entry = RunEntry(run.folder, recipe.model, run.role, recipe.init, recipe.seed % FRESH, outcome)
    if result is None:
        return entry
    return replace(entry, test_accuracy=result.test_accuracy, seconds=result.seconds)


def _deviations() -> Section:
    headers = ["what", "the paper's text", "its code", "followed here"]
    text = [
        "An empty cell: that source leaves it open, or was not found to say.",
        "Figures 7 to 11 are supplements, numbered as in the paper's appendix; what each shows here is in "
        "its heading, and which number the paper gives to it may differ.",
    ]
    return Section(
        "Where the paper's text and code disagree, and what this follows",
        text,
        [Table(headers, DEVIATIONS)],
    )
