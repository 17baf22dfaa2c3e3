"""What goes wrong in a run of several processes: no one waits, and the last checkpoint is there as it was."""

from __future__ import annotations

import pytest

import sparsekern as sk
from tests.distributed.runs import assert_close, assert_equal, outcome, start


def assert_saved_state_is_there(path, expected, step=10):
    used = start(seed=7)
    extra = sk.distributed.load_checkpoint(path, *used.saved, generators=[used.generator])
    assert extra["step"] == step
    assert_equal(outcome(used), expected)


@pytest.fixture(scope="module")
def unbroken(processes, tmp_path_factory):
    """A sharded run without any fault, and its state at the step that all runs here save after."""
    path = str(tmp_path_factory.mktemp("unbroken") / "checkpoint")
    return processes(2, "saved_and_resumed", path=path, wrapper="fsdp")[0]


def test_a_process_is_killed_in_training(processes, tmp_path, unbroken):
    path = str(tmp_path / "checkpoint")
    error, _ = processes(2, "dies_in_training", path=path, wrapper="fsdp", killed=[1], timeout=60)
    assert error.startswith(("RuntimeError", "DistBackendError"))
    assert_saved_state_is_there(path, unbroken["at_save"])
    for result in processes(2, "resumed", path=path, wrapper="fsdp"):
        assert_equal(result["resumed"], {k: v for k, v in unbroken["unbroken"].items() if k != "local"})
    assert_close(processes(1, "resumed", path=path)[0]["resumed"], unbroken["unbroken"])


@pytest.mark.parametrize(("victim", "count"), [(0, 3), (1, 1)], ids=["first", "other"])
def test_a_process_is_killed_in_a_save(processes, tmp_path, unbroken, victim, count):
    path = str(tmp_path / "checkpoint")
    arguments = {"path": path, "victim": victim, "count": count}
    results = processes(2, "dies_in_save", killed=[victim], timeout=60, **arguments)
    assert "Error: " in results[1 - victim]
    assert_saved_state_is_there(path, unbroken["at_save"])


def test_a_save_that_is_killed_at_any_moment_leaves_one_checkpoint_whole(processes, tmp_path):
    steps = processes(1, "killed_at_each_moment", path=str(tmp_path / "checkpoint"), most=80)[0]
    # The old one up to a certain moment, and from then on the new one.
    assert steps == sorted(steps)
    assert steps.count(4) > 8
    assert steps.count(8) > 2


def test_a_disk_that_is_full_for_one_process_ends_the_save_in_all(processes, tmp_path):
    path = str(tmp_path / "checkpoint")
    for result in processes(2, "disk_full", path=path, wrapper="fsdp"):
        assert len(result["errors"]) == 7
        for where, error in result["errors"].items():
            victim = where.split(",")[0]
            assert error.startswith(f"CheckpointError: no checkpoint was written to {path}"), where
            assert f"{victim} of 2: OSError: [Errno 28] No space left on device" in error, where
        assert result["left"] == ["checkpoint.json", "data-1"]
        assert result["step"] == 20


def test_a_damaged_file_is_named_before_anything_is_changed(processes, tmp_path):
    path = str(tmp_path / "checkpoint")
    results = processes(2, "damaged", path=path)
    files = [".metadata", "__0_0.distcp", "__1_0.distcp", "rank-0.pt", "rank-1.pt", "state.pt"]
    reasons = {"flipped": "is damaged: its SHA-256", "shorter": "must have", "missing": "cannot be read"}
    for errors in results:
        assert errors.keys() == {f"{name} {harm}" for name in files for harm in reasons}
        for where, error in errors.items():
            name, harm = where.split()
            assert error.startswith("CheckpointError: "), where
            assert f"{path}/data-1/{name} {reasons[harm]}" in error, where


def test_what_is_wrong_in_one_process_is_an_error_in_all(processes, tmp_path):
    path = str(tmp_path / "checkpoint")
    first, other = processes(2, "differing", path=path)
    assert not first["exists"]
    first, other = first["errors"], other["errors"]
    assert (
        first["path"]
        == other["path"]
        == f"ValueError: path must be the same in all processes, got '{path}-0' and '{path}-1'"
    )
    assert first["extra"].startswith("TypeError: extra must have plain values and tensors only")
    assert other["extra"].startswith("CheckpointError: process 0 of 2: TypeError: extra must have plain")
    assert other["method"] == "ValueError: state must have method 'SET', got 'RigL'"
    assert first["method"] == f"CheckpointError: process 1 of 2: {other['method']}"
    assert other["place"].startswith("CheckpointError: path must be a folder with a checkpoint")
    assert first["place"] == f"CheckpointError: process 1 of 2: {other['place']}"
