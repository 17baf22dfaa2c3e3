"""Jobs that break their process: the others run, and what broke is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import types

import pytest

from benchmarks.gpu import supervise
from benchmarks.gpu.supervise import Broken, run


class Toy:
    """Runs contenders, some of which do not end well."""

    def __init__(self, name, **contenders):
        self.name = name
        self.contenders = contenders

    def measure(self, broken, tell):
        times = {}
        for contender, act in self.contenders.items():
            if contender in broken:
                times[contender] = broken[contender]
                continue
            tell(contender)
            times[contender] = act()
        return {"name": self.name, "times": times}


def fine():
    return 1


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def stick():
    raise Broken("illegal memory access")


def hang():
    time.sleep(60)


def fail():
    raise MemoryError("too large\nby far")


def records(*jobs, **options):
    found = list(run(jobs, method="fork", patience=1.0, **options))
    assert [index for index, _ in found] == list(range(len(found)))
    return [record for _, record in found]


def test_all_run_in_order():
    found = records(Toy("a", x=fine, y=fine), Toy("b", x=fine))
    assert found == [{"name": "a", "times": {"x": 1, "y": 1}}, {"name": "b", "times": {"x": 1}}]


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (die, "its process ended with status -9"),
        (leave, "its process ended with status 3"),
        (stick, "illegal memory access"),
        (hang, "no answer in 1 s"),
    ],
)
def test_what_breaks_the_process_is_left_out_and_all_else_runs(act, reason):
    found = records(Toy("a", x=fine), Toy("b", x=fine, bad=act, y=fine), Toy("c", bad=fine))
    assert found == [
        {"name": "a", "times": {"x": 1}},
        {"name": "b", "times": {"x": 1, "bad": reason, "y": 1}},
        {"name": "c", "times": {"bad": 1}},
    ]


def test_two_that_break_it_are_left_out_one_after_the_other():
    (found,) = records(Toy("a", x=die, y=fine, z=stick))
    assert found["times"] == {"x": "its process ended with status -9", "y": 1, "z": "illegal memory access"}


def test_a_job_that_fails_says_why_and_the_next_runs():
    assert records(Toy("a", x=fail), Toy("b", x=fine)) == [
        {"failed": "MemoryError: too large"},
        {"name": "b", "times": {"x": 1}},
    ]


class Silent:
    def measure(self, broken, tell):
        die()


def test_a_job_that_dies_before_any_contender_is_passed_over():
    assert records(Silent(), Toy("b", x=fine)) == [
        {"failed": "its process ended with status -9"},
        {"name": "b", "times": {"x": 1}},
    ]


def test_after_the_deadline_nothing_begins(monkeypatch):
    # A clock that only jobs move, in memory that they share with this process.
    clock = multiprocessing.Value("d", 0.0)
    monkeypatch.setattr(supervise, "time", types.SimpleNamespace(monotonic=lambda: clock.value))

    def take_a_second():
        clock.value += 1.0

    job = Toy("a", x=take_a_second)
    assert len(records(job, job, job, deadline=1.5)) == 2
    assert records(job, deadline=1.5) == []


def test_each_process_is_prepared(tmp_path):
    path = tmp_path / "prepared"
    records(Toy("a", x=die), Toy("b", x=fine), prepare=lambda: path.open("a").write("x"))
    assert path.read_text() == "xx"
