"""A pipeline's table, for the terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from sparsekern.experiments.pipeline.measure import BATCHES, StageCost
from sparsekern.experiments.pipeline.plan import Pipeline

HEADER = ("stage", "zeros", "accuracy", "bytes", "smaller", *(f"speed at {size}" for size in BATCHES))
NOTE = (
    "zeros of all weights; accuracy on the test set; bytes of weights, places, scales and biases; smaller "
    "and speed against the dense float32 network, for batches of {batches} with {threads} threads"
)


def as_line(stage: StageCost) -> str:
    """One stage, as soon as it is measured."""
    _, zeros, accuracy, size, smaller, *_ = _cells(stage)
    return f"stage {stage.stage}: {zeros} zeros, accuracy {accuracy}, {size} bytes, {smaller} smaller"


def as_table(stages: Sequence[StageCost]) -> str:
    """Columns for a terminal."""
    rows = [HEADER, *map(_cells, stages)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [*lines, f"({note()})"])


def as_markdown(pipeline: Pipeline, stages: Sequence[StageCost]) -> str:
    """A page with the table."""
    rows = ["| " + " | ".join(row) + " |" for row in (HEADER, *map(_cells, stages))]
    rows.insert(1, "|---" + "|---:" * (len(HEADER) - 1) + "|")
    title = f"# {pipeline.name}: {pipeline.sparse.description}"
    return "\n".join([title, "", *rows, "", note().capitalize() + ".", ""])


def as_json(pipeline: Pipeline, stages: Sequence[StageCost]) -> dict[str, Any]:
    """What other programs read."""
    return {
        "pipeline": pipeline.name,
        "settings": pipeline.settings(),
        "threads": torch.get_num_threads(),
        "stages": [asdict(stage) for stage in stages],
    }


def note() -> str:
    """What the columns mean."""
    *most, last = map(str, BATCHES)
    return NOTE.format(batches=f"{', '.join(most)} and {last}", threads=torch.get_num_threads())


def _cells(stage: StageCost) -> tuple[str, ...]:
    return (
        stage.stage,
        f"{stage.sparsity:.1%}",
        f"{stage.accuracy:.2%}",
        f"{stage.bytes:,}",
        f"{stage.times_smaller:.2f}x",
        *(f"{stage.speedups[str(size)]:.2f}x" for size in BATCHES),
    )
