"""Runs with RigL that are killed without warning and carried on by another process: the same bits."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys

import pytest

# Saves after every third step, in one file that is replaced as a whole, as any careful loop does.
SCRIPT = """
import hashlib, os, sys, time
import torch
from torch import nn
import sparsekern as sk

folder, autocast, parts, steps, halt = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)
torch.manual_seed(0)
convolution = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten())
model = nn.Sequential(convolution, nn.Linear(288, 40), nn.ReLU(), nn.Linear(40, 5))
sk.sparsify_(model, sparsity=0.8, init="per_neuron")
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
method = sk.RigL(model, optimizer, update_every=4, stop_at=28)
scaler = torch.amp.GradScaler("cpu", enabled=bool(autocast), init_scale=2.0**8, growth_interval=5)
path, first = os.path.join(folder, "state.pt"), 0
if os.path.exists(path):
    state = torch.load(path, weights_only=True)
    first = state["step"]
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
print("from", first, flush=True)
for step in range(first, steps):
    optimizer.zero_grad()
    for part in range(parts):
        generator = torch.Generator().manual_seed(parts * step + part)
        images = torch.randn(8, 2, 8, 8, generator=generator)
        labels = torch.randint(5, (8,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast)):
            loss = nn.functional.cross_entropy(model(images), labels) / parts
        scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    if (step + 1) % 3 == 0:
        state = {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "scaler": scaler.state_dict()}, path + ".new")
        os.replace(path + ".new", path)
    print(step + 1, flush=True)
    while step + 1 == halt:
        time.sleep(1)
digest = hashlib.sha256()
for tensor in [*model.state_dict().values(), *(t for s in optimizer.state.values() for t in s.values())]:
    digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())
print(digest.hexdigest(), method.updates, method.steps)
"""
STEPS = 26


def start(folder, autocast, parts, hash_seed, halt=0):
    """A process that trains, or carries on; after step `halt` it waits to be killed."""
    numbers = (int(autocast), parts, STEPS, halt)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), *map(str, numbers)],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output.splitlines()


def kill_after(process, step):
    for line in process.stdout:
        if line == f"{step}\n":
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("autocast", "parts"),
    [
        pytest.param(True, 1, marks=pytest.mark.slow),
        pytest.param(False, 3, marks=pytest.mark.slow),
        (True, 2),
    ],
    ids=["autocast", "accumulated", "both"],
)
def test_a_killed_run_ends_as_if_it_had_not_been(autocast, parts, tmp_path):
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    *_, whole = finish(start(folders[0], autocast, parts, hash_seed=1))
    # Just after an update (8), and between two (14): each time up to two steps are lost and done again.
    for step, hash_seed in ((8, 2), (14, 3)):
        kill_after(start(folders[1], autocast, parts, hash_seed, halt=step), step)
    first, *_, resumed = finish(start(folders[1], autocast, parts, hash_seed=4))
    assert first == "from 12"
    assert resumed == whole
    digest, updates, steps = whole.split()
    assert len(digest) == len(hashlib.sha256().hexdigest())
    assert (int(updates), int(steps)) == (6, STEPS)
