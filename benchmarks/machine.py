"""What a run was taken on: the machine, the same for a whole results file, and the run's own part."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from sparsekern import env, native

ROOT = Path(__file__).resolve().parents[1]
# Above this, something else was running when a run began.
IDLE_LOAD = 0.5


def describe(device: str) -> dict[str, Any]:
    """The machine: figures of different machines never share a file."""
    found = env.collect_env()
    return {
        "cpu": found["CPU"],
        "isa": native._C.get_isa(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": torch.get_num_threads(),
        "gpu": found["GPU"] if device == "cuda" else None,
    }


def file_name(device: str) -> str:
    """Of the results, without a suffix: the GPU's name, or the CPU's and the number of threads.

    Kernels of another instruction set than the CPU's best are named too: they are asked for, and slower.
    """
    if device == "cuda":
        return slug(torch.cuda.get_device_name())
    cpu = env.collect_env()["CPU"].rpartition(",")[0]
    isa, default = native._C.get_isa(), native.isa_levels()[-1]
    kernels = "" if isa == default else f"-{isa}"
    return f"{slug(cpu)}-{torch.get_num_threads()}-threads{kernels}"


def title(about: dict[str, Any]) -> str:
    """What a results file is of, in words; `about` is from `describe`."""
    if about["gpu"]:
        return about["gpu"].partition(" (")[0]
    return f"{about['cpu'].rpartition(',')[0]}, {about['threads']} threads"


def slug(name: str) -> str:
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*", " ", name)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def provenance(command: str, load: float) -> dict[str, Any]:
    """When, from which commit and with which versions a run was taken; `load` is that at its start."""
    found = env.collect_env()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "commit": commit(),
        "versions": {name: found[name] for name in ("sparsekern", "Python", "PyTorch", "Triton", "NumPy")},
        "scipy": _scipy(),
        "operating_system": found["operating system"],
        "load_at_start": load,
    }


def load() -> float:
    """Mean number of running processes over the last minute."""
    return round(os.getloadavg()[0], 2)


def commit() -> str:
    """The source's commit, and whether the measured code differed from it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "csrc", "kernels", "sparsekern", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name} with changes" if changed else name


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _scipy() -> str:
    try:
        import scipy
    except ImportError:
        return "not installed"
    return scipy.__version__
