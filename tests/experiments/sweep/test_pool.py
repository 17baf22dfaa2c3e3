import os
import signal
import sys

import pytest

from sparsekern.experiments.sweep import pool
from sparsekern.experiments.sweep.pool import work_off

# What a worker is to this file: it answers every job by the job's seed.
SCRIPT = """
import json, os, signal, sys, time

def stop(*arguments):
    print(json.dumps({"kind": "stopped", "step": 3}), flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, stop)
for line in sys.stdin:
    job = json.loads(line)
    seed = job["recipe"]["seed"]
    about = {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}
    print(json.dumps({"kind": "progress", "step": 1, **about}), flush=True)
    if seed == 1:
        print("out of luck", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 2:
        sys.exit("no module")
    while seed == 9:
        time.sleep(0.1)
    time.sleep(0.1)
    print(json.dumps({"kind": "finished", "folder": job["folder"]}), flush=True)
"""


class Heard:
    def __init__(self):
        self.messages = []
        self.ticks = 0

    def message(self, job, message):
        self.messages.append((job, message))

    def tick(self):
        self.ticks += 1

    def of(self, kind):
        return {job.recipe.seed: message for job, message in self.messages if message["kind"] == kind}


@pytest.fixture(autouse=True)
def script(monkeypatch):
    monkeypatch.setattr(pool, "_COMMAND", [sys.executable, "-c", SCRIPT])


def with_seeds(jobs, *seeds):
    return [type(job)(job.recipe.override({"seed": seed}), job.folder) for job, seed in zip(jobs, seeds)]


def test_jobs_share_workers_with_one_thread_each(jobs):
    heard = Heard()
    assert work_off(with_seeds(jobs, 10, 11, 12, 13), 2, None, heard) is None
    assert heard.of("finished").keys() == {10, 11, 12, 13}
    assert all(message["folder"] == str(job.folder) for job, message in heard.messages if "folder" in message)
    progress = heard.of("progress").values()
    assert len({message["pid"] for message in progress}) == 2
    assert {message["threads"] for message in progress} == {"1"}


def test_a_worker_that_ends_fails_its_job_and_leaves_its_place_to_another(jobs):
    heard = Heard()
    work_off(with_seeds(jobs, 1, 2, 10, 11), 1, None, heard)
    assert heard.of("finished").keys() == {10, 11}
    failed = heard.of("failed")
    assert failed[1]["error"] == "its process ended with SIGKILL: out of luck"
    assert failed[2]["error"] == "its process ended with exit code 1: no module"


def test_a_signal_stops_what_runs_and_leaves_the_rest(jobs):
    class Interrupting(Heard):
        def message(self, job, message):
            super().message(job, message)
            if message["kind"] == "progress":
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    heard = Interrupting()
    assert work_off(with_seeds(jobs, 9, 10, 11), 1, None, heard) == signal.SIGINT
    assert heard.of("stopped") == {9: {"kind": "stopped", "step": 3}}
    assert {job.recipe.seed for job, _ in heard.messages} == {9}
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_to_do_starts_nothing(monkeypatch):
    monkeypatch.setattr(pool, "_COMMAND", ["/no/such/program"])
    assert work_off([], 4, None, Heard()) is None


def test_workers_are_told_where_relative_paths_start(jobs, tmp_path, monkeypatch):
    tell = SCRIPT.replace('"folder": job["folder"]', '"relative_to": job["relative_to"]')
    monkeypatch.setattr(pool, "_COMMAND", [sys.executable, "-c", tell])
    monkeypatch.chdir(tmp_path)
    for folder, expected in ((None, None), (pool.Path("runs"), str(tmp_path / "runs"))):
        heard = Heard()
        work_off(with_seeds(jobs, 10), 1, None, heard, folder)
        assert heard.of("finished")[10]["relative_to"] == expected
