"""Memory of a multilayer perceptron in training: dense, masked and sparse, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.machine import ROOT
from benchmarks.settings import Settings

MODELS = ("dense", "masked-dense", "sparsekern")
SPARSITY = 0.90
LAYERS, WIDTH, BATCH = 4, 4096, 256
QUICK_WIDTH, QUICK_BATCH = 512, 16


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record for each model.

    Raises
    ------
    RuntimeError
        With what the process wrote, when one fails.
    """
    width, batch = (QUICK_WIDTH, QUICK_BATCH) if settings.quick else (WIDTH, BATCH)
    for model in MODELS:
        settings.progress(f"memory, {model}")
        numbers = [LAYERS, width, batch, SPARSITY, torch.get_num_threads()]
        command = [sys.executable, "-m", "benchmarks.memory_process", model, *map(str, numbers)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"measuring the memory of {model} failed:\n{result.stderr.strip()}")
        yield {
            "model": model,
            "layers": LAYERS,
            "width": width,
            "batch": batch,
            "sparsity": 0.0 if model == "dense" else SPARSITY,
            **json.loads(result.stdout),
        }
