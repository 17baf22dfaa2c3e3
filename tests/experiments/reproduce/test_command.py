"""``sparsekern reproduce``: what it refuses, and a small reproduction from runs to pages."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sparsekern.cli import main
from sparsekern.experiments.reproduce import runs, write
from sparsekern.experiments.reproduce.command import build_parser, read_reproduction
from sparsekern.experiments.reproduce.figures import hessian, landscape
from sparsekern.experiments.reproduce.targets import TARGETS
from sparsekern.experiments.reproduce.write import write_report
from sparsekern.files import exclusive

TINY = {
    "sparsity": 0.995,
    "steps": 24,
    "update_every": 6,
    "prune_begin": 4,
    "prune_end": 12,
    "log_every": 12,
    "evaluate_every": 24,
    "checkpoint_every": 12,
    "gradient_flow_every": 6,
    "gradient_flow_examples": 60,
    "grow_batch_size": 60,
    "batch_size": 32,
}


@pytest.fixture
def tiny(monkeypatch):
    """Runs of a few steps, of networks so sparse that a Hessian is soon there."""
    base = runs.Scale.base
    monkeypatch.setattr(runs.Scale, "base", lambda scale, network: base(scale, network).override(TINY))
    monkeypatch.setattr(runs.Scale, "prune_every", property(lambda scale: 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel1", "--quick"], "unknown table or figure 'tabel1'; did you mean table1"),
        (["table1"], "--data-dir must be given, the folder of MNIST's four files; --quick does without"),
        (
            ["table1", "--quick", "--seeds", "0-2,1"],
            "--seeds must not repeat, got 1 more than once in '0-2,1'",
        ),
        (
            ["table1", "--quick", "--seeds", "x"],
            "--seeds must be whole numbers and ranges such as 0-2,7, got 'x'",
        ),
        (["table1", "--quick", "--seeds", "1000"], "--seeds must be below 1000, got 1000"),
    ],
    ids=["name", "no data", "repeated seeds", "no seeds", "large seed"],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_mnist_is_named_before_anything_is_made(tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["reproduce", "table1", "--data-dir", str(tmp_path), "--output", str(output)]) == 2
    assert "expected one of train-images-idx3-ubyte" in capsys.readouterr().err
    assert not output.exists()


def test_all_is_every_target_and_names_are_taken_once():
    parser = build_parser()
    assert list(read_reproduction(parser.parse_args(["all", "--quick"])).names) == list(TARGETS)
    assert list(read_reproduction(parser.parse_args(["fig3", "table1", "fig3", "--quick"])).names) == [
        "fig3",
        "table1",
    ]


def test_help_lists_every_target(capsys):
    with pytest.raises(SystemExit):
        main(["reproduce", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in TARGETS)


def test_a_folder_in_use_is_refused_before_anything_is_done(tmp_path, capsys):
    with exclusive(tmp_path / ".lock"):
        assert main(["reproduce", "fig1c", "--quick", "--output", str(tmp_path)]) == 2
    assert f"--output {tmp_path} is in use by another sparsekern reproduce" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_quick_and_full_reports_do_not_replace_each_other(tmp_path, capsys, quick_report):
    write_report(dataclasses.replace(quick_report, quick=False), tmp_path)
    before = (tmp_path / "report.md").read_bytes()
    assert main(["reproduce", "fig1c", "--quick", "--output", str(tmp_path)]) == 2
    message = "holds a full reproduction, expected a quick reproduction or none: name another folder"
    assert message in capsys.readouterr().err
    assert (tmp_path / "report.md").read_bytes() == before
    (tmp_path / "results.json").write_text("{}")  # of no use: it is written anew
    assert main(["reproduce", "fig1c", "--quick", "--output", str(tmp_path)]) == 0


def test_other_settings_are_named_in_the_report(tiny, tmp_path, capsys):
    arguments = ["reproduce", "fig1c", "--quick", "--seeds", "0", "--output", str(tmp_path)]
    assert main([*arguments, "--weight-decay", "0.5"]) == 0
    assert "Not the paper's settings: weight_decay = 0.5 in all runs." in (tmp_path / "report.md").read_text()
    assert main([*arguments, "--momentum", "2"]) == 2
    assert "momentum must be" in capsys.readouterr().err


def test_all_targets_from_runs_to_pages(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hessian, "_examples", lambda results: 20)
    monkeypatch.setattr(landscape, "_examples", lambda results: 20)
    arguments = ["reproduce", "all", "--quick", "--seeds", "0,1", "--workers", "1", "--output", str(tmp_path)]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "66 of 66" in first or "[66/66]" in first
    text = (tmp_path / "report.md").read_text()
    for heading in (
        "Table 1",
        "Table 2",
        "Table 5",
        "Table 6",
        "Figure 1c",
        "Figure 2",
        "Figure 11",
        "disagree",
    ):
        assert heading in text
    assert "quick" in text
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["quick"] is True
    finished = {path.parent.name for path in (tmp_path / "runs").glob("*/result.json")}
    assert {entry["folder"] for entry in results["runs"]} == finished
    assert {entry["outcome"] for entry in results["runs"]} == {"finished"}
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 10
    svgs = sorted(path.name for path in (tmp_path / "figures").glob("*.svg"))
    assert len(svgs) == len(list((tmp_path / "figures").glob("*.png"))) == 10

    # Everything is there: nothing is run, measured or drawn again but the pages, which are the same.
    monkeypatch.setattr(write, "write_figure", _as_they_are)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert main(arguments) == 0
    second = capsys.readouterr().out
    assert "measuring" not in second
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (tmp_path / "report.md").read_text() == text


def _as_they_are(figure, folder, quick):
    return [folder / f"{figure.name}.svg", folder / f"{figure.name}.png"]


@pytest.mark.slow
def test_runs_are_shared_between_targets(tiny, tmp_path, capsys):
    def call(name):
        arguments = ["reproduce", name, "--quick", "--seeds", "0", "--workers", "1"]
        assert main([*arguments, "--output", str(tmp_path)]) == 0
        return {
            path.parent.name for path in (tmp_path / "runs").glob("*/result.json")
        }, capsys.readouterr().out

    table, text = call("table5")
    assert "[13/13]" in text
    figure, text = call("fig7")
    assert figure == table
    assert "[" not in text


@pytest.mark.slow
def test_a_signal_saves_the_runs_and_the_same_command_carries_on(tmp_path):
    command = [sys.executable, "-m", "sparsekern", "reproduce", "fig10", "--quick", "--workers", "1"]
    command += ["--seeds", "0", "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs_folder = tmp_path / "runs"
    deadline = time.monotonic() + 120
    while not list(runs_folder.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, error
    assert "the same command carries on" in error
    assert main(command[3:]) == 0
    assert (tmp_path / "report.md").exists()


def test_a_run_that_diverges_is_counted_as_chance(tiny, tmp_path, monkeypatch, capsys):
    base = runs.Scale.base
    monkeypatch.setattr(
        runs.Scale, "base", lambda scale, network: base(scale, network).override({"learning_rate": 1e20})
    )
    arguments = [
        "reproduce",
        "table5",
        "--quick",
        "--seeds",
        "0",
        "--workers",
        "1",
        "--output",
        str(tmp_path),
    ]
    # The pruning runs diverge as well, so the runs of their masks fail.
    assert main(arguments) == 1
    text = (tmp_path / "report.md").read_text()
    assert "1 of 1 runs diverged and count as chance, 10 %" in text
    assert "1 of 1 runs failed and are left out" in text
    assert "its mask is missing" in capsys.readouterr().err
    outcomes = {entry["outcome"] for entry in json.loads((tmp_path / "results.json").read_text())["runs"]}
    assert outcomes == {"diverged", "failed"}
    # Nor does another part of the report keep quiet about them.
    assert main([*arguments[:1], "fig11", *arguments[2:]]) == 1
    text = (tmp_path / "report.md").read_text()
    assert "The runs it needs are not there" in text
