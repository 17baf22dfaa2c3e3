"""The examples: they count what they send, and go on from their checkpoints, also after one was killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def numbers(line):
    """Step, loss, nnz, bytes of gradients, and of a dense model's."""
    found = re.fullmatch(
        r"step (\S+)/\S+   loss (\S+)   nnz (\S+)   gradients sent (\S+) bytes a step, dense (\S+)", line
    )
    return tuple(float(number.replace(",", "")) for number in found.groups())


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_trains_and_goes_on(processes, tmp_path, name):
    def run(*arguments):
        script = str(EXAMPLES / f"{name}.py")
        first, other = processes(
            2, "example", join=False, script=script, port=free_port(), arguments=arguments
        )
        assert other == []
        return first

    checkpoint = ["--save-every", "8", "--checkpoint", str(tmp_path / "checkpoint")]
    unbroken = run("--steps", "24", *checkpoint[:2])
    begun = run("--steps", "16", *checkpoint)
    resumed = run("--steps", "24", "--resume", *checkpoint)
    assert [line.replace("/16", "/24") for line in begun] + resumed == unbroken
    steps, losses, nnz, sent, dense = zip(*map(numbers, unbroken))
    assert steps == (8, 16, 24)
    assert losses[0] > losses[1] > losses[2]
    # The blocks' weights are 12 * 128**2 each.
    assert set(nnz) == {round(0.1 * 2 * 12 * 128**2)}
    assert max(sent) < 0.17 * min(dense)


def torchrun(count, *arguments):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={count}",
            *map(str, arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_killed_and_resumed_by_torchrun(tmp_path, name):
    checkpoint = ("--checkpoint", tmp_path / "checkpoint", "--save-every", 4)
    started = torchrun(2, EXAMPLES / f"{name}.py", "--steps", 100_000, *checkpoint)
    for line in started.stdout:
        # What it saved after step 4 is complete by then.
        if line.startswith("step 8/"):
            break
    os.kill(children(started.pid)[1], signal.SIGKILL)
    begin = time.monotonic()
    _, errors = started.communicate(timeout=100)
    assert started.returncode != 0, errors
    assert time.monotonic() - begin < 60
    for count, steps in ((3, 60), (1, 64)):
        resumed = torchrun(count, EXAMPLES / f"{name}.py", "--steps", steps, "--resume", *checkpoint)
        output, errors = resumed.communicate(timeout=200)
        assert resumed.returncode == 0, errors
        printed = [numbers(line)[0] for line in output.splitlines()]
        assert printed == list(range(int(printed[0]), steps + 1, 4))
        assert printed[0] >= (8 if count == 3 else 64)
