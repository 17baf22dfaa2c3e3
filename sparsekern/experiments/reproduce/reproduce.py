"""From the names of tables and figures to a report: runs first, then measurements, then pages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsekern.experiments.data import load_dataset
from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.reproduce.document import Report, Section, Table
from sparsekern.experiments.reproduce.execute import Ended, Runs
from sparsekern.experiments.reproduce.paper import DEVIATIONS
from sparsekern.experiments.reproduce.plots import require_matplotlib
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import NETWORKS, PaperRuns, Scale, unique
from sparsekern.experiments.reproduce.targets import TARGETS
from sparsekern.experiments.reproduce.write import write_report
from sparsekern.experiments.sweep.table import environment


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
    """

    names: Sequence[str]
    seeds: Sequence[int]
    output: Path
    workers: int
    data_dir: Path | None = None
    quick: bool = False

    @property
    def scale(self) -> Scale:
        """The length of runs and their data."""
        return Scale(self.quick, "digits" if self.data_dir is None else "mnist")


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
    dataset = load_dataset(wanted.scale.dataset, wanted.data_dir)
    paper = {network: PaperRuns(network, wanted.seeds, wanted.scale) for network in NETWORKS}
    runs = unique(run for name in wanted.names for run in TARGETS[name].runs(paper))
    home = Runs(wanted.output / "runs")
    home.claim(dataset)
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


def _report(wanted: Reproduction, sections: list[Section], ended: Sequence[Ended]) -> Report:
    seeds = ", ".join(map(str, wanted.seeds))
    where = ", ".join(f"{name} {version}" for name, version in environment().items())
    hours = sum(end.result.seconds for end in ended if end.result) / 3600
    data = "the digits of scikit-learn, not MNIST" if wanted.data_dir is None else "MNIST"
    summary = [
        "Tables and figures of Evci, Ioannou, Keskin and Dauphin, “Gradient Flow in Sparse Neural Networks "
        f"and How Lottery Tickets Win” (AAAI 2022), made again by sparsekern on {data}: {len(ended)} runs of "
        f"seeds {seeds}, {hours:.1f} hours of training on one thread each ({where}).",
    ]
    if wanted.quick or wanted.data_dir is None:
        summary.append("Values of the paper stand beside for orientation: they are of full runs on MNIST.")
    return Report(
        "Gradient flow in sparse neural networks: a reproduction",
        wanted.quick,
        summary,
        [*sections, _deviations()],
    )


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
