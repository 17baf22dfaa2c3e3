"""What came out of a sweep: method by initialization, as text and as data."""

import platform
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from sparsekern._version import __version__
from sparsekern.experiments.recipe import Recipe
from sparsekern.experiments.sweep.outcome import Outcome


def cells(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One entry a method and initialization: its test accuracies by seed, their mean and standard deviation.

    The deviation is that of a sample, ``sqrt(sum((a - mean) ** 2) / (n - 1))``; there is none of a single
    run.
    """
    found = []
    for method, init in dict.fromkeys(outcome.job.cell for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.job.cell == (method, init)]
        accuracies = [run.result.test_accuracy for run in runs if run.result]
        entry = {"method": method, "init": init, "runs": len(runs), "finished": len(accuracies)}
        entry["test_accuracies"] = accuracies
        entry["mean"] = statistics.fmean(accuracies) if accuracies else None
        entry["std"] = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        found.append(entry)
    return found


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table of :func:`cells`: accuracies in %, with the number of runs that they are of."""
    entries = {(entry["method"], entry["init"]): entry for entry in cells(outcomes)}
    methods = list(dict.fromkeys(method for method, _ in entries))
    inits = list(dict.fromkeys(init for _, init in entries))
    rows = [["method", *(f"{init} init" for init in inits)]]
    rows += [[method, *(_cell(entries.get((method, init))) for init in inits)] for method in methods]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    if not entry["finished"]:
        return "failed"
    spread = "" if entry["std"] is None else f" ± {100 * entry['std']:.2f}"
    of = "" if entry["finished"] == entry["runs"] else f" of {entry['runs']}"
    return f"{100 * entry['mean']:.2f}{spread} ({entry['finished']}{of})"


CAPTION = "test accuracy in %: mean ± standard deviation (number of runs)"


def summary_text(recipe: Recipe, overrides: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The content of ``summary.md``."""
    changed = ", ".join(f"`{name}` {value}" for name, value in overrides.items())
    lines = [
        f"# Sweep of {recipe.name}",
        "",
        f"Recipe `{recipe.name}`{' with ' if changed else ''}{changed}; {recipe.steps:,} steps a run.",
        f"{CAPTION.capitalize()}.",
        "",
        table(outcomes),
        "",
        "| method | init | test accuracy by seed |",
        "|---|---|---|",
    ]
    for method, init in dict.fromkeys(outcome.job.cell for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.job.cell == (method, init)]
        lines.append(f"| {method} | {init} | {', '.join(map(_by_seed, runs))} |")
    failed = [outcome for outcome in outcomes if outcome.result is None]
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- `{outcome.job.folder.name}`: {outcome.error}" for outcome in failed]
    where = environment()
    lines += ["", f"One thread a run, {', '.join(f'{name} {version}' for name, version in where.items())}."]
    return "\n".join(lines) + "\n"


def _by_seed(outcome: Outcome) -> str:
    accuracy = "failed" if outcome.result is None else f"{outcome.result.test_accuracy:.2%}"
    return f"{outcome.job.recipe.seed}: {accuracy}"


def summary_data(recipe: Recipe, overrides: dict[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The content of ``summary.json``; accuracies are fractions."""
    return {
        "recipe": recipe.name,
        "overrides": overrides,
        "settings": recipe.settings(),
        "environment": environment(),
        "cells": cells(outcomes),
        "runs": [outcome.summary() for outcome in outcomes],
    }


def environment() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "sparsekern": __version__,
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "machine": platform.machine(),
    }
