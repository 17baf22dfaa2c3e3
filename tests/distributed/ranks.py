"""What the processes of the tests here run, each function under its own name."""

from __future__ import annotations

import torch

import sparsekern as sk
from tests.distributed.runs import go, local, outcome, start
from tests.processes import run

SAVED, STEPS = 10, 20


def saved_and_resumed(rank, size, path, **arguments):
    """A run that saves on its way, and another that loads that and goes on."""
    first = start(rank, size, **arguments)
    go(first, range(SAVED), rank, size)
    sk.distributed.save_checkpoint(
        path, *first.saved, {"step": SAVED, "table": torch.arange(4.0)}, generators=[first.generator]
    )
    result = {"at_save": outcome(first)}
    go(first, range(SAVED, STEPS), rank, size)
    result["unbroken"] = {**outcome(first), "local": local(first)}

    second = start(rank, size, seed=7, **arguments)
    go(second, range(2), rank, size)
    extra = sk.distributed.load_checkpoint(path, *second.saved, generators=[second.generator])
    result |= {"extra": extra, "loaded": outcome(second)}
    go(second, range(extra["step"], STEPS), rank, size)
    result["resumed"] = {**outcome(second), "local": local(second)}
    return result


def resumed(rank, size, path, **arguments):
    """A run that goes on from what another number of processes, or another wrapper, has saved."""
    used = start(rank, size, seed=7, **arguments)
    extra = sk.distributed.load_checkpoint(path, *used.saved, generators=[used.generator])
    result = {"extra": extra, "loaded": outcome(used)}
    go(used, range(extra["step"], STEPS), rank, size)
    return {**result, "resumed": outcome(used)}


if __name__ == "__rank__":
    run(JOB, globals())  # noqa: F821 (the fixture hands it over)
