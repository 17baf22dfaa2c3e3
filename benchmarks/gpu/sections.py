"""The sections of ``python -m benchmarks --device cuda``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks import cases as cpu_cases
from benchmarks.gpu import memory
from benchmarks.gpu import training as networks
from benchmarks.gpu.cases import Case, cases, quick_cases
from benchmarks.gpu.jobs import OpJob, name_of, prepare
from benchmarks.gpu.supervise import run
from benchmarks.settings import Settings

# Of the time left, what whole networks may take; the ops go on until the rest is up.
TRAINING_SHARE = 0.35


def chosen(settings: Settings) -> list[Case]:
    """The cases, of some sparsities where they were asked for."""
    found = quick_cases() if settings.quick else cases()
    if settings.sparsities == cpu_cases.SPARSITIES:
        return found
    return [case for case in found if case.sparsity in settings.sparsities]


def ops(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record for each case that there is time for."""
    wanted = chosen(settings)
    jobs = [OpJob(case, settings.device, settings.seconds, settings.tuned) for case in wanted]
    settings.progress(f"gpu, {len(jobs)} cases, the most important first")
    for index, record in run(jobs, deadline=settings.deadline, prepare=prepare):
        settings.progress(f"gpu {index + 1}/{len(jobs)}, {wanted[index]}")
        yield {"times": {}, "bars": [], **name_of(wanted[index]), **record}


def steps(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record for each contender of each network, in a part of the time that is left."""
    jobs = networks.jobs(settings.device, settings.quick)
    deadline = settings.deadline
    if deadline != float("inf"):
        now = time.monotonic()
        deadline = now + TRAINING_SHARE * (deadline - now)
    for index, record in run(jobs, deadline=deadline, prepare=prepare):
        job = jobs[index]
        settings.progress(f"gpu-training {index + 1}/{len(jobs)}, {job.network}, {job.model}")
        yield {"network": job.network, "model": job.model, "sparsity": job.sparsity, **record}


def training(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record for each model, with autocast and without."""
    jobs = memory.jobs(settings.device, settings.quick)
    for index, record in run(jobs, deadline=settings.deadline, prepare=prepare):
        job = jobs[index]
        settings.progress(f"gpu-memory {index + 1}/{len(jobs)}, {job.model}")
        yield {"model": job.model, "autocast": job.autocast, **record}
