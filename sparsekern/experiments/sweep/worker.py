"""A worker process of a sweep: takes runs from standard input, and tells on standard output how they go.

Both are JSON, a line a message. What a run itself would print is left out; warnings go to standard error.
"""

import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch

from sparsekern.experiments.errors import DivergedError, ExperimentError
from sparsekern.experiments.recipe import Recipe, recipe_from
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.runtime import Stopped

_SECONDS_BETWEEN_MESSAGES = 0.2


def main() -> None:
    """Work until standard input ends or a signal comes."""
    torch.set_num_threads(1)
    worker = _Worker()
    for line in sys.stdin:
        worker.work(json.loads(line))
        if worker.stopping:
            return


class _Worker:
    def __init__(self) -> None:
        # Nothing but messages may reach the pipe: whatever else is printed joins the warnings.
        self._messages: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.stopping = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def work(self, job: dict[str, Any]) -> None:
        """One run, from its checkpoint if it has one."""
        if job["relative_to"] is not None:
            # Not before: the package may have been found by way of the folder that the process started in.
            os.chdir(job["relative_to"])
        folder = Path(job["folder"])
        failure = folder / "failure.txt"
        options = RunOptions(output=folder, data_dir=job["data_dir"] and Path(job["data_dir"]), resume=True)
        try:
            recipe = recipe_from(job["recipe"], "the sweep")
            result = run(recipe, options, say=lambda text: None, watch=self._watch)
        except Stopped as stopped:
            self.stopping = True
            self.send(kind="stopped", step=stopped.step)
        except ExperimentError as error:
            self.send(kind="failed", error=str(error), diverged=isinstance(error, DivergedError))
        except Exception as error:  # whatever it is, the other runs go on
            if folder.is_dir():
                failure.write_text(traceback.format_exc(), encoding="utf-8")
            self.send(kind="failed", error=" ".join(f"{type(error).__name__}: {error}".split()))
        else:
            failure.unlink(missing_ok=True)
            self.send(kind="finished", result=dataclasses.asdict(result))

    def send(self, **message: Any) -> None:
        """Tell the sweep; when it is gone, stop."""
        try:
            self._messages.write(json.dumps(message) + "\n")
            self._messages.flush()
        except BrokenPipeError:
            self.stopping = True

    def _watch(self, recipe: Recipe, first: int) -> "_Watcher":
        return _Watcher(self, first)


class _Watcher:
    """Sends where a run is, a few times a second."""

    def __init__(self, worker: _Worker, first: int) -> None:
        self._worker = worker
        self._step = first
        self._metrics: dict[str, float] = {}
        self._sent = 0.0
        self._send()

    def advance(self) -> None:
        """One more step is done."""
        self._step += 1
        if time.monotonic() - self._sent > _SECONDS_BETWEEN_MESSAGES:
            self._send()
        if self._worker.stopping:
            # As a signal to the run: it saves its state and ends.
            os.kill(os.getpid(), signal.SIGTERM)

    def record(self, record: dict[str, Any]) -> None:
        """Keep the latest loss and test accuracy."""
        if record["kind"] == "train":
            self._metrics["loss"] = record["loss"]
        elif record["kind"] == "test":
            self._metrics["test_accuracy"] = record["accuracy"]

    def close(self) -> None:
        """The run ends here; its result follows."""
        self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        self._worker.send(kind="progress", step=self._step, **self._metrics)


if __name__ == "__main__":
    main()
