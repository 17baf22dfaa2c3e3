"""Jobs in a process of their own, which a kernel may break: the run goes on without the contender that did.

After a kernel has read where it must not, or never ends, nothing else can run in its process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

# Without a sign of life for so long, a process is stopped. Compiling a kernel takes seconds.
PATIENCE = 60.0


class Broken(Exception):
    """Raised by a job when its process is of no use any more; `reason` is why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Job(Protocol):
    """Something to measure; it can be pickled."""

    def measure(self, broken: dict[str, str], tell: Callable[[str], None]) -> dict[str, Any]:
        """The record.

        Parameters
        ----------
        broken : dict of str to str
            Contenders that are to be left out, and why.
        tell : callable
            To be called with the name of a contender before it runs.
        """


def run(
    jobs: Sequence[Job],
    *,
    deadline: float = float("inf"),
    patience: float = PATIENCE,
    method: str = "spawn",
    prepare: Callable[[], None] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(index, record)`` of each job, in order, until the deadline.

    A job that fails as a whole has the record ``{"failed": reason}``.

    Parameters
    ----------
    jobs : sequence of Job
    deadline : float
        As `time.monotonic`; a job that has begun ends.
    patience : float
        Seconds.
    method : str
        How processes start, as in `multiprocessing`.
    prepare : callable, optional
        Runs first in each process.
    """
    context = multiprocessing.get_context(method)
    index, broken = 0, {}
    while index < len(jobs) and time.monotonic() < deadline:
        receiver, sender = context.Pipe(duplex=False)
        arguments = (jobs[index:], broken, deadline, sender, prepare)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        sender.close()
        running, kind = "", ""
        while kind not in ("end", "broken", "died", "silent"):
            kind, content = _next(receiver, patience)
            if kind == "record":
                yield index, content
                index, broken, running = index + 1, {}, ""
            elif kind == "running":
                running = content
        if kind != "died":
            process.kill()
        process.join()
        if kind == "end":
            return
        reason = content or f"its process ended with status {process.exitcode}"
        if running and running not in broken:
            broken = {**broken, running: reason}
        else:
            yield index, {"failed": reason}
            index, broken = index + 1, {}


def _next(receiver: Connection, patience: float) -> tuple[str, Any]:
    """The next message, or "died" or "silent"."""
    try:
        if receiver.poll(patience):
            return receiver.recv()
    except (EOFError, ConnectionError):
        return "died", ""
    return "silent", f"no answer in {patience:.0f} s"


def _work(
    jobs: Sequence[Job],
    broken: dict[str, str],
    deadline: float,
    sender: Connection,
    prepare: Callable[[], None] | None,
) -> None:
    # Who stops the run closes the other end.
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        if prepare is not None:
            prepare()
        for job in jobs:
            if time.monotonic() >= deadline:
                break
            try:
                record = job.measure(broken, lambda name: sender.send(("running", name)))
            except Broken as error:
                sender.send(("broken", error.reason))
                return
            except Exception as error:
                # Too large for the memory, say; the next one may not be.
                text = str(error).strip().partition("\n")[0]
                record = {"failed": f"{type(error).__name__}: {text}"}
            sender.send(("record", record))
            broken = {}
        sender.send(("end", None))
