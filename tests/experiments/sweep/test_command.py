"""The command as a whole, with real workers."""

import json
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
from sparsekern.experiments.metrics import read_metrics
from sparsekern.experiments.recipe import load_recipe
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.sweep.command import build_parser, read_sweep

KEYS = (
    "--update-every 20 --grow-batch-size 50 --log-every 1 --evaluate-every 50 --checkpoint-every 20".split()
)


def arguments(output, *more):
    return ["sweep", "lenet5-digits", *KEYS, "--output", str(output), *more]


def error_of(capsys, *more):
    try:
        code = main(["sweep", *more])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_runs_fail_alone_and_the_table_tells(tmp_path, capsys):
    # A learning rate this large ends every run that trains; the small network, whose run is there, is kept.
    folder = tmp_path / "small_dense-dense-seed0"
    steps = ["--steps", "50", "--learning-rate", "1e20"]
    recipe = load_recipe("lenet5-digits").override(
        {key[2:].replace("-", "_"): value for key, value in zip(KEYS[::2], KEYS[1::2])}
        | {"steps": 50, "learning_rate": 1e20, "method": "small_dense", "init": "dense", "benchmark_steps": 0}
    )
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    result = {"recipe": recipe.name, "digest": recipe.digest, "steps": 50, "test_accuracy": 0.5}
    (folder / "result.json").write_text(json.dumps(result | {"test_loss": 1.0, "seconds": 1.0}))
    assert main(arguments(tmp_path, *steps, "--methods", "small_dense,rigl", "--workers", "1")) == 1
    captured = capsys.readouterr()
    assert "1 of 2 runs are finished from before" in captured.out
    assert "[2/2] rigl         per_neuron  seed 0   failed: the loss became nan" in captured.out
    assert "| small_dense | 50.00 (1)  |                 |" in captured.out
    assert "| rigl        |            | failed          |" in captured.out
    assert captured.err == "sparsekern sweep: 1 of 2 runs failed\n"
    assert "`rigl-per_neuron-seed0`: the loss became nan" in (tmp_path / "summary.md").read_text()
    statuses = [run["status"] for run in json.loads((tmp_path / "summary.json").read_text())["runs"]]
    assert statuses == ["finished", "failed"]


def start(output, *more):
    """The command in a process of its own, once a run has written ten lines of metrics."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsekern", *arguments(output, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    metrics = output / "rigl-per_neuron-seed0" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 10:
        assert process.poll() is None
        time.sleep(0.002)
    return process


@pytest.mark.slow
def test_interrupted_sweeps_carry_on_to_the_same_weights(tmp_path, capsys):
    more = ["--methods", "rigl", "--steps", "200", "--workers", "1"]
    process = start(tmp_path, *more)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "rigl  per_neuron  seed 0   stopped after step " in out
    assert "stopped by SIGINT with 1 of 1 runs left; the same command carries on:" in err
    folder = tmp_path / "rigl-per_neuron-seed0"
    assert 0 < read_checkpoint(folder / "checkpoint.pt")["trainer"]["step"] < 200
    assert not (folder / "result.json").exists()

    assert main(arguments(tmp_path, *more)) == 0
    assert "| rigl   |" in capsys.readouterr().out
    recipe = load_recipe(str(folder / "recipe.yaml"))
    run(recipe, RunOptions(tmp_path / "whole", bar=False), say=lambda text: None)
    ours, theirs = (read_checkpoint(f / "checkpoint.pt")["trainer"] for f in (folder, tmp_path / "whole"))
    assert all(torch.equal(value, theirs["model"][key]) for key, value in ours["model"].items())
    assert digest(ours["optimizer"]) == digest(theirs["optimizer"])


def test_workers_of_a_killed_sweep_save_their_state_and_end(tmp_path):
    process = start(tmp_path, "--methods", "rigl", "--steps", "100000", "--checkpoint-every", "100000")
    process.kill()
    process.communicate()
    # The worker finds that nobody listens any more.
    folder = tmp_path / "rigl-per_neuron-seed0"
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    step = read_checkpoint(folder / "checkpoint.pt")["trainer"]["step"]
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl")][-1] == step


def test_the_default_folder_and_the_overrides():
    options = build_parser().parse_args(
        ["lenet5-mnist", "--steps", "50", "--seeds", "0-2", "--masks", "a/b.pt"]
    )
    sweep = read_sweep(options)
    assert str(sweep.output) == "runs/sweep-lenet5-mnist-masks=a_b.pt-steps=50"
    assert (sweep.methods, sweep.inits, sweep.seeds) == (["static"], ["per_neuron"], [0, 1, 2])
    assert sweep.workers == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["lenet5-digits", "--method", "rigl"], "unknown option --method; did you mean --methods"),
        (["lenet5-digits", "--methods", "rigl,sett"], "--methods must be of dense, "),
        (
            ["lenet5-digits", "--seeds", "two"],
            "--seeds must be whole numbers and ranges such as 0-2,7, got 'two'",
        ),
        (["lenet5-digits", "--seeds", ""], "--seeds must be whole numbers and ranges such as 0-2,7, got ''"),
        (["lenet5-digits", "--methods", ""], "--methods must be of dense, "),
        (["lenet5-digits", "--inits", ""], "--inits must be of dense, "),
        (["lenet5-digits", "--workers", "0"], "--workers: must be a whole number from 1 to 1024, got '0'"),
        (
            ["lenet5-digits", "--methods", "rigl", "--update-every", "3000"],
            "update_every must be below steps",
        ),
        (["lenet5-digits", "--masks", "nowhere.pt"], "masks nowhere.pt: cannot be read: No such file"),
        (["lenet5-mnist"], "the data set 'mnist' needs --data-dir"),
        (["lenet5"], "unknown recipe 'lenet5'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    error = error_of(capsys, *more)
    assert error.startswith("sparsekern sweep: error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []
