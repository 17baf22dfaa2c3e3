"""Functions that run in several processes, which train one model together."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import runpy
import signal
import time
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

# What training imports as it goes, `torch._dynamo` with the first optimizer, takes seconds in each process.
PRELOADED = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "sparsekern"]


class Processes:
    """Calls ``processes(size, name, ...)``; what each process returned, by rank.

    Parameters
    ----------
    script : Path
        Has the functions, and ends with ``if __name__ == "__rank__": run(JOB, globals())``.
    folder : Path
        For their results.
    """

    def __init__(self, script: Path, folder: Path) -> None:
        self._script = script
        self._folder = folder
        self._calls = 0
        # Forked from a process that has imported everything and computed nothing.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def __call__(
        self, size: int, name: str, *, timeout: float = 100, killed=(), join=True, **arguments
    ) -> list:
        """The results; None of those ranks that are to be `killed`, by themselves, before they have one.

        With ``join=False`` the function makes the process group.
        """
        self._calls += 1
        folder = self._folder / str(self._calls)
        folder.mkdir()
        jobs = [
            {
                "name": name,
                "rank": rank,
                "size": size,
                "folder": str(folder),
                "join": join,
                "arguments": arguments,
            }
            for rank in range(size)
        ]
        running = [
            self._context.Process(target=runpy.run_path, args=(str(self._script), {"JOB": job}, "__rank__"))
            for job in jobs
        ]
        try:
            for process in running:
                process.start()
            self._wait(name, folder, running, time.monotonic() + timeout, killed)
        finally:
            for process in running:
                process.kill()
                process.join()
        return [
            None if rank in killed else torch.load(folder / f"{rank}.pt", weights_only=True)
            for rank in range(size)
        ]

    def _wait(self, name: str, folder: Path, running: list, deadline: float, killed) -> None:
        while any(process.is_alive() for process in running) and time.monotonic() < deadline:
            if any(process.exitcode for rank, process in enumerate(running) if rank not in killed):
                # The others wait for one that has failed; its report is what counts.
                deadline = min(deadline, time.monotonic() + 5)
            multiprocessing.connection.wait([p.sentinel for p in running if p.is_alive()], timeout=1)
        expected = [-signal.SIGKILL if rank in killed else 0 for rank in range(len(running))]
        failed = [rank for rank, process in enumerate(running) if process.exitcode != expected[rank]]
        if failed:
            reports = "\n".join(path.read_text() for path in sorted(folder.glob("*.txt")))
            pytest.fail(f"{name}: rank {failed} of {len(running)} failed or did not end\n{reports}")


def run(job, functions):
    """What the script does in a process: the named function, whose result or error goes to a file."""
    rank, size, folder = job["rank"], job["size"], Path(job["folder"])
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        if job["join"] and size > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/rendezvous",
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(seconds=30),
            )
        torch.save(functions[job["name"]](rank, size, **job["arguments"]), folder / f"{rank}.pt")
        if job["join"] and size > 1:
            dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.txt").write_text(f"rank {rank}: {traceback.format_exc()}")
        raise SystemExit(1) from None


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes; tiny layers gain nothing by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
