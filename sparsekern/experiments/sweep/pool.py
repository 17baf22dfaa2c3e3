"""Worker processes, and what becomes of the jobs they are given."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from sparsekern.experiments.runtime import StopSignals
from sparsekern.experiments.sweep.plan import Job

_TICK_SECONDS = 0.2
_COMMAND = [sys.executable, "-m", "sparsekern.experiments.sweep.worker"]


class Listener(Protocol):
    """Hears what happens to the jobs."""

    def message(self, job: Job, message: dict[str, Any]) -> None:
        """A job's worker said something: ``kind`` is progress, finished, failed or stopped."""

    def tick(self) -> None:
        """A moment has passed."""


class Worker:
    """A process with one thread, and the job that it works on."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._errors = tempfile.TemporaryFile()
        # A session of its own: Ctrl-C reaches the sweep alone, which then stops its workers in order.
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._unread = b""

    def fileno(self) -> int:
        """For selectors: readable when there are messages, or when the process has ended."""
        return self._process.stdout.fileno()

    def start(self, job: Job, data_dir: Path | None, relative_to: Path | None) -> None:
        """Give the process a job, and the folder where relative paths in its recipe start."""
        self.job = job
        content = {
            "recipe": asdict(job.recipe),
            "folder": str(job.folder.absolute()),
            "data_dir": None if data_dir is None else str(data_dir.absolute()),
            "relative_to": None if relative_to is None else str(relative_to.absolute()),
        }
        try:
            self._process.stdin.write(json.dumps(content).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, which reading from it shows

    def messages(self) -> list[dict[str, Any]]:
        """What the process said since the last call; a last message is made up for one that ended."""
        chunk = os.read(self.fileno(), 1 << 16)
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        messages = [json.loads(line) for line in lines]
        return messages if chunk else [*messages, {"kind": "ended", "error": self._epitaph()}]

    def stop(self) -> None:
        """Ask the process to save its state and end."""
        self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """End the process, if it has not, and let go of it."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            try:
                file.close()
            except BrokenPipeError:
                pass

    def _epitaph(self) -> str:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        return f"its process ended with {how}" + (f": {last}" if last else "")


def work_off(
    jobs: Iterable[Job],
    workers: int,
    data_dir: Path | None,
    listener: Listener,
    folder: Path | None = None,
) -> signal.Signals | None:
    """Run the jobs, at most ``workers`` at a time, and tell ``listener`` of each how it goes.

    Relative paths in the jobs' recipes start in ``folder``, or in the working directory if that is None.

    Every job ends with a message of kind finished or failed. After SIGINT or SIGTERM, jobs that have been
    started end with stopped, their state saved, others are left alone, and the signal is returned. A second
    signal acts as it always does, and ends the workers at once.
    """
    pool = _Pool(listener)
    waiting = list(jobs)[::-1]
    with StopSignals() as signals:
        try:
            while waiting or pool.workers:
                if signals.received and not pool.stopping:
                    waiting.clear()
                    pool.stop()
                pool.resize(min(workers, pool.busy + len(waiting)))
                for worker in pool.workers:
                    if worker.job is None:
                        worker.start(waiting.pop(), data_dir, folder)
                pool.listen()
                listener.tick()
        finally:
            pool.resize(0)
    return signals.received


class _Pool:
    """The workers that are there."""

    def __init__(self, listener: Listener) -> None:
        self.workers: list[Worker] = []
        self.stopping = False
        self._listener = listener
        self._selector = selectors.DefaultSelector()

    @property
    def busy(self) -> int:
        return sum(worker.job is not None for worker in self.workers)

    def resize(self, size: int) -> None:
        """Start workers, or let go of them: those without a job first."""
        while len(self.workers) < size:
            self.workers.append(Worker())
            self._selector.register(self.workers[-1], selectors.EVENT_READ)
        for worker in sorted(self.workers, key=lambda worker: worker.job is not None):
            if len(self.workers) > size:
                self._retire(worker)

    def stop(self) -> None:
        """Ask all to save their state and end."""
        self.stopping = True
        for worker in self.workers:
            worker.stop()

    def listen(self) -> None:
        """Pass on what the workers say in the next moment."""
        for key, _ in self._selector.select(_TICK_SECONDS):
            worker = key.fileobj
            for message in worker.messages():
                ended = message["kind"] == "ended"
                if ended:
                    message["kind"] = "stopped" if self.stopping else "failed"
                if worker.job is not None:
                    self._listener.message(worker.job, message)
                if message["kind"] != "progress":
                    worker.job = None
                if ended:
                    self._retire(worker)

    def _retire(self, worker: Worker) -> None:
        self._selector.unregister(worker)
        self.workers.remove(worker)
        worker.close()
