"""Tuning with a clock of its own: which config is taken, when configs are tried, and what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from sparsekern.kernels import tuning
from sparsekern.kernels.configs import Config, Problem
from sparsekern.kernels.launch import LaunchError

PROBLEM = Problem("linear", 100, 64, 64, 64, 2, "half", True, True, False, 90, 132)
GUESS, SLOW, FAST = (Config(samples, 1, 4, 3) for samples in (16, 32, 64))
TIMES = {GUESS: 3.0, SLOW: 5.0, FAST: 1.0}


class Device:
    """A GPU that takes `TIMES`, and remembers which configs ran."""

    def __init__(self) -> None:
        self.ran: list[Config] = []
        self.failing: tuple[Config, ...] = ()

    def run(self, config: Config) -> None:
        self.ran.append(config)
        if config in self.failing:
            raise LaunchError("out of shared memory")

    def milliseconds(self, work) -> float:
        work()
        return TIMES[self.ran[-1]]


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(tuning.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuning.torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "_milliseconds", device.milliseconds)
    monkeypatch.setattr(tuning, "_fastest", {})
    return device


def choose(device, problem=PROBLEM):
    return tuning.choose(list(TIMES), problem, device.run)


def test_outside_the_block_the_best_guess_runs_untried(device):
    assert choose(device) == GUESS
    assert device.ran == []


def test_inside_the_fastest_is_found_and_stays(device):
    with tuning.tuned():
        assert choose(device) == FAST
    assert device.ran == list(TIMES)
    assert choose(device) == FAST
    assert device.ran == list(TIMES)


def test_numbers_of_samples_up_to_the_next_power_of_two_are_one_problem(device):
    with tuning.tuned():
        choose(device, replace(PROBLEM, samples=65))
        choose(device, replace(PROBLEM, samples=128))
        assert len(device.ran) == 3
        choose(device, replace(PROBLEM, samples=129))
        choose(device, replace(PROBLEM, op="linear_grad_input", samples=100))
    assert len(device.ran) == 9


@pytest.mark.parametrize("samples", [0, 1])
def test_no_samples_and_one(device, samples):
    with tuning.tuned():
        assert choose(device, replace(PROBLEM, samples=samples)) == FAST


def test_a_config_that_does_not_launch_is_passed_over(device):
    device.failing = (FAST,)
    with tuning.tuned():
        assert choose(device) == GUESS


def test_where_none_launches_the_best_guess_stays_so_that_its_error_shows(device):
    device.failing = tuple(TIMES)
    with tuning.tuned():
        assert choose(device) == GUESS


def test_other_errors_are_not_hidden(device):
    def run(config):
        raise MemoryError("no memory")

    with tuning.tuned(), pytest.raises(MemoryError, match="no memory"):
        tuning.choose(list(TIMES), PROBLEM, run)


@pytest.mark.parametrize(
    ("name", "value"),
    [("is_available", False), ("is_current_stream_capturing", True)],
    ids=["no-gpu", "capturing"],
)
def test_nothing_is_measured_without_a_gpu_or_while_a_graph_is_captured(device, monkeypatch, name, value):
    monkeypatch.setattr(tuning.torch.cuda, name, lambda: value)
    with tuning.tuned():
        assert choose(device) == GUESS
    assert device.ran == []
    assert tuning._fastest == {}


def test_the_block_ends_with_an_error_too(device):
    with pytest.raises(KeyError), tuning.tuned():
        raise KeyError
    assert choose(device) == GUESS
    assert device.ran == []
