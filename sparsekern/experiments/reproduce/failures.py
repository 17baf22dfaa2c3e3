"""Sentences about runs that did not come to their end, or learnt nothing: none goes unmentioned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsekern.experiments.reproduce.results import LEARNT, Results
from sparsekern.experiments.reproduce.runs import PaperRun

Groups = Mapping[str, Sequence[PaperRun]]


def accuracy_notes(results: Results, groups: Groups) -> list[str]:
    """For a table of accuracies, where networks that diverged count as chance."""
    notes = []
    for label, runs in groups.items():
        ended = [results.ended.get(run.folder) for run in runs]
        stuck = sum(bool(end and end.result and end.result.test_accuracy < LEARNT) for end in ended)
        diverged, failed = _counts(results, runs)
        notes += _sentence(
            label,
            len(runs),
            {
                f"never learnt (test accuracy below {100 * LEARNT:.0f} %)": stuck,
                "diverged and count as chance, 10 %": diverged,
                "failed and are left out": failed,
            },
        )
    return notes


def left_out_notes(results: Results, groups: Groups) -> list[str]:
    """For what only networks can show that came to their end."""
    notes = []
    for label, runs in groups.items():
        diverged, failed = _counts(results, runs)
        outcomes = {"diverged and are left out": diverged, "failed and are left out": failed}
        notes += _sentence(label, len(runs), outcomes)
    return notes


def _counts(results: Results, runs: Sequence[PaperRun]) -> tuple[int, int]:
    """How many diverged, and how many failed."""
    ended = [end for run in runs if (end := results.ended.get(run.folder))]
    diverged = sum(end.diverged for end in ended)
    return diverged, sum(end.result is None for end in ended) - diverged


def _sentence(label: str, total: int, outcomes: Mapping[str, int]) -> list[str]:
    parts = [f"{count} of {total} runs {outcome}" for outcome, count in outcomes.items() if count]
    return [f"{label}: {', '.join(parts)}."] if parts else []
