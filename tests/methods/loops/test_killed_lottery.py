"""Searches for tickets that are killed without warning and carried on by another process: the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, sys, time
import torch
from torch import nn
import sparsekern as sk

folder, mode, rewind_to, seed, halt_in, halt_at = *sys.argv[1:3], *map(int, sys.argv[3:])
torch.set_num_threads(1)
torch.manual_seed(seed)


def make():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(288, 5)
    )


def train(model, round):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    round.watch(optimizer)
    for step in range(round.start_step, 8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.randn(8, 2, 8, 8)), torch.randint(5, (8,)))
        loss.backward()
        optimizer.step()
        print(round.index, step + 1, flush=True)
        while (round.index, step + 1) == (halt_in, halt_at):
            time.sleep(1)


tickets = sk.methods.find_tickets(
    make, train, sparsity=0.9, rounds=3, mode=mode, rewind_to=rewind_to, folder=folder
)
digest = hashlib.sha256(torch.get_rng_state().numpy())
for ticket in tickets:
    for tensor in [*ticket.state.values(), *(pattern.data for pattern in ticket.masks.values())]:
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
print(digest.hexdigest())
"""


def start(folder, mode, rewind_to, seed, halt_in=0, halt_at=0):
    arguments = [str(folder), mode, *map(str, (rewind_to, seed, halt_in, halt_at))]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output.splitlines()


@pytest.mark.parametrize(
    ("mode", "rewind_to", "halt_in", "halt_at", "goes_on"),
    [
        ("weights", 2, 1, 5, "1 1"),
        pytest.param("learning_rate", 3, 3, 6, "3 4", marks=pytest.mark.slow),
    ],
)
def test_a_killed_search_ends_with_the_same_bits(tmp_path, mode, rewind_to, halt_in, halt_at, goes_on):
    whole = finish(start(tmp_path / "whole", mode, rewind_to, 1))
    process = start(tmp_path / "killed", mode, rewind_to, 1, halt_in, halt_at)
    for line in process.stdout:
        if line.strip() == f"{halt_in} {halt_at}":
            break
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdout.close()
    process.stderr.close()
    rest = finish(start(tmp_path / "killed", mode, rewind_to, 5))
    assert rest[0] == goes_on
    assert rest[-1] == whole[-1]
