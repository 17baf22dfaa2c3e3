import io
import re

import pytest

from sparsekern.experiments.sweep import overview as module
from sparsekern.experiments.sweep.outcome import Outcome
from sparsekern.experiments.sweep.overview import Overview


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def pass_seconds(seconds):
        now[0] += seconds

    return pass_seconds


def plain(jobs, earlier=()):
    stream = io.StringIO()
    return Overview("digits", jobs, list(earlier), stream, live=False), stream


def test_every_run_that_ends_is_a_line(jobs, finished, clock):
    overview, stream = plain(jobs)
    overview.progress(jobs[0], 0)
    overview.ended(finished(jobs[0], 0.9876))
    overview.ended(Outcome(jobs[2], error="the loss became nan"))
    overview.stopped(jobs[1], 7)
    overview.close()
    assert stream.getvalue() == (
        "[1/6] dense  dense       seed 0   test accuracy  98.76%       1:01\n"
        "[2/6] rigl   per_neuron  seed 0   failed: the loss became nan\n"
        "rigl   dense       seed 0   stopped after step 7 of 12\n"
    )


def test_runs_of_an_earlier_call_are_counted(jobs, finished, clock):
    earlier = [finished(jobs[0], 0.9), Outcome(jobs[1], error="another recipe")]
    overview, stream = plain(jobs, earlier)
    overview.ended(finished(jobs[2], 0.5))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "rigl   dense       seed 0   failed: another recipe"
    assert lines[1] == "1 of 6 runs are finished from before"
    assert lines[2].startswith("[3/6] rigl   per_neuron  seed 0")


def test_without_a_terminal_there_is_a_line_a_minute(jobs, clock):
    overview, stream = plain(jobs)
    overview.progress(jobs[0], 0)
    for _ in range(100):
        clock(1)
        overview.tick()
    overview.progress(jobs[0], 6)
    for _ in range(25):
        clock(1)
        overview.tick()
    # 6 runs of 12 steps, of which 6 took two minutes.
    assert stream.getvalue() == (
        "digits: 0 of 6 runs done, 1 running, 1:00\n"
        "digits: 0 of 6 runs done, 1 running, 2:00, about 22:00 left\n"
    )


def test_the_time_left_counts_what_is_resumed_and_what_has_failed(jobs, finished, clock):
    overview, stream = plain(jobs[:3])
    overview.progress(jobs[0], 6)  # 6 of 12 steps were done before
    overview.progress(jobs[0], 9)
    overview.ended(Outcome(jobs[1], error="no"))
    clock(60)
    overview.progress(jobs[0], 12)
    overview.ended(finished(jobs[0], 0.5))
    overview.progress(jobs[2], 0)
    clock(60)
    overview.tick()
    assert (
        stream.getvalue()
        .splitlines()[-1]
        .endswith("2 of 3 runs done, 1 failed, 1 running, 2:00, about 4:00 left")
    )


def screen(text):
    """What a terminal shows after ``text``: cursor up to the start of a line, and clear from there."""
    lines = [""]
    for part in re.split(r"(\x1b\[\d+F\x1b\[J|\n)", text):
        if part == "\n":
            lines.append("")
        elif match := re.fullmatch(r"\x1b\[(\d+)F\x1b\[J", part):
            del lines[len(lines) - 1 - int(match[1]) :]
            lines.append("")
        else:
            lines[-1] += part
    return lines


def test_on_a_terminal_running_runs_are_written_over(jobs, finished, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    stream = io.StringIO()
    overview = Overview("digits", jobs, [], stream, live=True)
    for step in (0, 3, 6):
        clock(1)
        overview.progress(jobs[1], step, loss=2.0 / (step + 1))
        overview.progress(jobs[2], step)
        overview.tick()
    shown = screen(stream.getvalue())
    assert shown[0] == "digits: 0 of 6 runs done, 2 running, 0:03, about 0:15 left"
    assert shown[1] == "  rigl   dense       seed 0  |████████        |  50%     3 steps/s  loss 0.2857"
    assert len(shown) == 4
    overview.ended(finished(jobs[1], 0.9))
    clock(1)
    overview.tick()
    shown = screen(stream.getvalue())
    assert shown[0].startswith("[1/6] rigl   dense       seed 0")
    assert shown[1].startswith("digits: 1 of 6 runs done, 1 running")
    assert len(shown) == 4
    overview.close()
    assert len(screen(stream.getvalue())) == 2


def test_live_lines_are_no_wider_than_the_terminal(jobs, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = io.StringIO()
    overview = Overview("digits", jobs, [], stream, live=True)
    overview.progress(jobs[1], 3)
    clock(1)
    overview.tick()
    assert max(map(len, screen(stream.getvalue()))) == 29
