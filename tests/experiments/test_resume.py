"""A run that was killed at any moment and resumed is the run that never was."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sparsekern.cli import main
from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.digest import digest
from sparsekern.experiments.metrics import TIME_FIELDS, read_metrics

STEPS, CHECKPOINT_EVERY = 150, 20


def command(output, *more):
    return [
        *f"train lenet5-digits --steps {STEPS} --log-every 1 --evaluate-every 50".split(),
        *f"--checkpoint-every {CHECKPOINT_EVERY} --benchmark-steps 0 --threads 1 --output {output}".split(),
        *more,
    ]


def kill_after(step, output, *more, hash_seed="0"):
    """Start a run in a process of its own and kill it once its metrics have ``step`` lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsekern", *command(output, *more)],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": hash_seed},
    )
    metrics = output / "metrics.jsonl"
    try:
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL


def without_times(records):
    return [{key: value for key, value in record.items() if key not in TIME_FIELDS} for record in records]


def assert_same_state(ours, theirs):
    for key, value in ours["model"].items():
        assert torch.equal(value, theirs["model"][key]), key
    for index, slots in ours["optimizer"]["state"].items():
        for name, value in slots.items():
            assert torch.equal(value, theirs["optimizer"]["state"][index][name]), (index, name)


@pytest.mark.parametrize(
    "sparsity", [pytest.param("0", marks=pytest.mark.slow), "0.95"], ids=["dense", "sparse"]
)
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, sparsity):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_after(53, killed, "--sparsity", sparsity)
    at = read_checkpoint(killed / "checkpoint.pt")["trainer"]["step"]
    assert 40 <= at < STEPS
    assert at % CHECKPOINT_EVERY == 0
    assert not (killed / "result.json").exists()

    assert main(command(killed, "--sparsity", sparsity, "--resume")) == 0
    assert main(command(whole, "--sparsity", sparsity)) == 0
    ours, theirs = (read_checkpoint(path / "checkpoint.pt")["trainer"] for path in (killed, whole))
    assert ours["step"] == theirs["step"] == STEPS
    assert_same_state(ours, theirs)
    assert without_times(read_metrics(killed / "metrics.jsonl")) == without_times(
        read_metrics(whole / "metrics.jsonl")
    )


@pytest.mark.slow
def test_rigl_killed_right_after_an_update_and_between_two_ends_the_same(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    more = ["--method", "rigl", "--update-every", "40", "--grow-batch-size", "200"]
    # Each process has hashes of its own; checkpoints are 20 steps apart.
    kill_after(45, killed, *more, hash_seed="1")
    state = read_checkpoint(killed / "checkpoint.pt")["trainer"]
    assert (state["step"], state["update_steps"]) == (40, [40])
    kill_after(73, killed, *more, "--resume", hash_seed="2")
    state = read_checkpoint(killed / "checkpoint.pt")["trainer"]
    assert (state["step"], state["update_steps"]) == (60, [40])

    assert main(command(killed, *more, "--resume")) == 0
    assert main(command(whole, *more)) == 0
    ours, theirs = (read_checkpoint(path / "checkpoint.pt")["trainer"] for path in (killed, whole))
    assert_same_state(ours, theirs)
    assert digest(ours["optimizer"]) == digest(theirs["optimizer"])
    assert ours["update_steps"] == theirs["update_steps"] == [40, 80, 120]
    records = [without_times(read_metrics(path / "metrics.jsonl")) for path in (killed, whole)]
    assert records[0] == records[1]
    updates = [record for record in records[0] if record["kind"] == "update"]
    assert [record["step"] for record in updates] == ours["update_steps"]
    assert updates[0]["grown"] > 0


def test_interrupted_saves_its_last_step_and_says_how_to_resume(tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsekern", *command(output, "--steps", "100000")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    metrics = output / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    step = read_checkpoint(output / "checkpoint.pt")["trainer"]["step"]
    assert len(read_metrics(metrics)) == step
    assert f"stopped by SIGINT after step {step:,}" in errors
    assert f"sparsekern train lenet5-digits --steps {STEPS}" in errors
    assert errors.strip().endswith("--resume")
