"""benchmarks/gpu.sh: it says when there is no GPU, and no step keeps another from running."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"
# Stands in for Python on a machine with a GPU: notes what it is asked for, and fails where it is told to.
STUB = """#!/bin/sh
echo "$SPARSEKERN_CUDA,$SPARSEKERN_CUDA_ARCHS: $*" >> "$CALLS"
case "$*" in
    *get_device_capability*) echo 90 ;;
    $FAILING) echo "it failed"; exit 3 ;;
esac
"""


def run(folder, *options, python=sys.executable, **variables):
    environment = {**os.environ, "PYTHON": str(python), "OUT": str(folder / "out"), **variables}
    command = ["sh", str(SCRIPT), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def stubbed(tmp_path):
    """stubbed(failing): the script's result where commands of a form fail, and the calls that it made."""
    if shutil.which("timeout") is None:
        pytest.skip("timeout is not installed")
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def call(failing="nothing"):
        calls = tmp_path / "calls"
        result = run(tmp_path, python=stub, CALLS=str(calls), FAILING=failing)
        return result, calls.read_text()

    return call


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_leaves_nothing(tmp_path):
    result = run(tmp_path)
    assert result.returncode == 1
    assert "PyTorch finds no GPU here" in result.stderr
    assert not (tmp_path / "out").exists()


def test_another_option_is_an_error(tmp_path):
    result = run(tmp_path, "--fast")
    assert (result.returncode, result.stderr) == (2, "usage: benchmarks/gpu.sh [--quick]\n")


def test_all_steps_run_for_the_gpu_that_is_there(stubbed, tmp_path):
    result, calls = stubbed()
    assert result.returncode == 0, result.stdout
    assert "1,90: -m pip install" in calls
    assert "0,: -m pip install" not in calls
    assert calls.index("-m pytest -q -m gpu") < calls.index("-m benchmarks --device cuda --seconds-total 330")
    assert "-m benchmarks bars --device cuda" in calls.splitlines()[-1]
    assert "-- build for sm_90: " in (tmp_path / "out" / "gpu.log").read_text()


@pytest.mark.parametrize("failing", ["*pytest*", "*seconds-total*", "*sparsekern*env*"])
def test_a_step_that_fails_keeps_no_other_from_running(stubbed, failing):
    result, calls = stubbed(failing)
    assert result.returncode == 1
    assert "it failed" in result.stdout
    assert "status 3" in result.stdout
    assert "-m pytest -q -m gpu --maxfail=20" in calls
    assert "-m benchmarks bars" in calls


def test_where_nvcc_fails_it_builds_without(stubbed):
    result, calls = stubbed("*pip*")
    assert result.returncode == 1
    assert calls.index("1,90: -m pip install") < calls.index("0,: -m pip install")
    assert "-m benchmarks --device cuda" in calls
