"""Runs a function of `ranks.py` in processes that train one model together."""

from __future__ import annotations

import multiprocessing
import runpy
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ranks.py")
# What training imports as it goes, `torch._dynamo` with the first optimizer, takes seconds in each process.
PRELOADED = ["torch._dynamo", "torch.distributed.fsdp", "sparsekern"]


class Processes:
    """Calls ``processes(size, name, ...)``; what each process returned, by rank."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = 0
        # Forked from a process that has imported everything and computed nothing.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def __call__(self, size: int, name: str, *, timeout: float = 100, **arguments) -> list:
        self._calls += 1
        folder = self._folder / str(self._calls)
        folder.mkdir()
        jobs = [
            {"name": name, "rank": rank, "size": size, "folder": str(folder), "arguments": arguments}
            for rank in range(size)
        ]
        running = [
            self._context.Process(target=runpy.run_path, args=(str(SCRIPT), {"JOB": job}, "__rank__"))
            for job in jobs
        ]
        try:
            for process in running:
                process.start()
            self._wait(name, folder, running, time.monotonic() + timeout)
        finally:
            for process in running:
                process.kill()
                process.join()
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]

    def _wait(self, name: str, folder: Path, running: list, deadline: float) -> None:
        while any(process.is_alive() for process in running) and time.monotonic() < deadline:
            if any(process.exitcode for process in running):
                # The others wait for one that has failed; its report is what counts.
                deadline = min(deadline, time.monotonic() + 5)
            multiprocessing.connection.wait([p.sentinel for p in running if p.is_alive()], timeout=1)
        failed = [rank for rank, process in enumerate(running) if process.exitcode != 0]
        if failed:
            reports = "\n".join(path.read_text() for path in sorted(folder.glob("*.txt")))
            pytest.fail(f"{name}: rank {failed} of {len(running)} failed or did not end\n{reports}")


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    return Processes(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes; tiny layers gain nothing by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
