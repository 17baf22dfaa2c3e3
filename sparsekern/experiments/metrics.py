"""Metrics of a run: JSON lines, and TensorBoard where it is asked for."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from sparsekern.experiments.errors import CheckpointError, ExperimentError
from sparsekern.experiments.files import write_atomically

#: Fields that depend on the clock; all others of a resumed run equal those of a run that was never stopped.
TIME_FIELDS = ("seconds", "steps_per_second")


class MetricsFile:
    """One JSON object a line, written as it happens.

    Parameters
    ----------
    path
        The file.
    last_step
        Keep what an earlier process wrote up to this step, and drop the rest (a line cut short by a crash
        included): the resumed run writes those lines again. None starts an empty file.

    Raises
    ------
    CheckpointError
        If a line to be kept is not what this class writes.
    """

    def __init__(self, path: Path, last_step: int | None = None) -> None:
        kept = "" if last_step is None else _lines_through(path, last_step)
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


def _lines_through(path: Path, last_step: int) -> str:
    if not path.exists():
        raise CheckpointError(
            f"{path}: expected the metrics of the first {last_step:,} steps, found no such file"
        )
    kept = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                break
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                raise CheckpointError(f"{path}: line {number}: expected a JSON object with a step") from None
            if step > last_step:
                break
            kept.append(line)
    return "".join(kept)


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
    """The same records as TensorBoard scalars ``kind/field``; of ``last_step`` as :class:`MetricsFile`."""

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
