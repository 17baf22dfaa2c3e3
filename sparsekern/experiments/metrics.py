"""Metrics of a run: JSON lines, and TensorBoard where it is asked for."""

import contextlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsekern.experiments.errors import CheckpointError, ExperimentError
from sparsekern.experiments.recipe import Recipe
from sparsekern.files import write_atomically

#: kind of record -> its numbers, besides the step, and their types; see :func:`bits_of` for text
FIELDS: dict[str, dict[str, type]] = {
    "update": {
        "drop_fraction": float,
        "dropped": int,
        "grown": int,
        "regrown": int,
        "exploration_rate": float,
    },
    "gradient_change": {"before": float, "after": float},
    "prune": {"sparsity": float, "active": int},
    "train": dict.fromkeys(
        ("epoch", "learning_rate", "loss", "accuracy", "seconds", "steps_per_second"), float
    ),
    "test": dict.fromkeys(("loss", "accuracy", "seconds"), float),
    "gradient": {"norm": float},
}
#: Fields that depend on the clock; all others of a resumed run equal those of a run that was never stopped.
TIME_FIELDS = ("seconds", "steps_per_second")


def bits_of(recipe: Recipe, loss: float) -> dict[str, float]:
    """Of text also ``loss / ln(2)``, as ``bits_per_byte`` or ``bits_per_character``."""
    return {field: loss / math.log(2) for field in _bits_fields(recipe)}


def _bits_fields(recipe: Recipe) -> list[str]:
    return [f"bits_per_{recipe.tokens.removesuffix('s')}"] if recipe.dataset == "text" else []


def _fields(recipe: Recipe, kind: str) -> dict[str, type]:
    bits = _bits_fields(recipe) if kind in ("train", "test") else []
    return {**FIELDS[kind], **dict.fromkeys(bits, float)}


def kinds_at(recipe: Recipe, step: int) -> list[str]:
    """The kinds of records that a run writes after ``step`` steps, in order, after those of a mask update."""
    last = step == recipe.steps
    every = {"train": recipe.log_every, "test": recipe.evaluate_every, "gradient": recipe.gradient_flow_every}
    return [kind for kind, steps in every.items() if steps and (last or step % steps == 0)]


def kinds_of_update(recipe: Recipe) -> list[str]:
    """The kinds of records that a mask update leaves, in order."""
    if recipe.prunes:
        return ["prune"]
    return ["update", "gradient_change"] if recipe.gradient_flow_every else ["update"]


class MetricsFile:
    """One JSON object a line, written as it happens.

    Parameters
    ----------
    path : Path
        The file.
    kept : str
        What the file starts with: the lines of an earlier process, from :func:`lines_through`.
    """

    def __init__(self, path: Path, kept: str = "") -> None:
        write_atomically(path, kept.encode())
        self._path = path
        self._file = open(path, "a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; it must have a ``step``, and no number in it may be nan or infinite.

        Raises
        ------
        OSError
            With the file's name, when the disk is full.
        """
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def sync(self) -> None:
        """Force what was written to the disk, so that a checkpoint never knows of lines that were lost."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a line that could not be written was reported by :meth:`write`."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a metrics file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lines_through(path: Path, recipe: Recipe, last_step: int, update_steps: Sequence[int] = ()) -> str:
    """The lines that a run of ``recipe``, with mask updates at ``update_steps``, wrote in its first
    ``last_step`` steps.

    What comes after them is left out, a line cut short by a crash included: a run that carries on from
    ``last_step`` writes it again.

    Raises
    ------
    CheckpointError
        If a line is not what a run writes there, or missing.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: expected the metrics of the first {last_step:,} steps, found no such file"
        ) from None
    updated = set(update_steps)
    due = [
        (kind, step)
        for step in range(recipe.first_step + 1, last_step + 1)
        for kind in (kinds_of_update(recipe) if step in updated else []) + kinds_at(recipe, step)
    ]
    for index, (kind, step) in enumerate(due):
        line = lines[index] if index < len(lines) else ""
        if not _is_record(line, kind, step, _fields(recipe, kind)):
            found = repr(_shortened(line.rstrip("\n"))) if line else "the end of the file"
            raise CheckpointError(
                f"{path}: line {index + 1}: expected the {kind} metrics of step {step:,}, found {found}"
            )
    return "".join(lines[: len(due)])


def _is_record(line: str, kind: str, step: int, fields: dict[str, type]) -> bool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return (
        line.endswith("\n")
        and isinstance(record, dict)
        and record.keys() == {"kind", "step", *fields}
        and (record["kind"], record["step"]) == (kind, step)
        and all(type(record[field]) is form for field, form in fields.items())
        and all(math.isfinite(record[field]) for field in fields)
    )


def _shortened(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def summary_writer() -> type:
    """TensorBoard's ``SummaryWriter``.

    Raises
    ------
    ExperimentError
        If the package ``tensorboard`` is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ExperimentError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from None
    return SummaryWriter


class TensorBoard:
    """The same records as TensorBoard scalars ``kind/field``, from after step ``last_step`` on."""

    def __init__(self, folder: Path, last_step: int | None = None) -> None:
        # Steps from here on are hidden in what an earlier process wrote: this one writes them again.
        purge_step = None if last_step is None else last_step + 1
        self._writer = summary_writer()(str(folder), purge_step=purge_step)

    def write(self, record: dict[str, Any]) -> None:
        """Add every number of a record."""
        for field, value in record.items():
            if field not in ("kind", "step"):
                self._writer.add_scalar(f"{record['kind']}/{field}", value, record["step"])

    def close(self) -> None:
        """Write out what is pending and close."""
        self._writer.close()
