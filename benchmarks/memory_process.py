"""Trains one model in a fresh process and prints what it holds in memory, as JSON.

``python -m benchmarks.memory_process MODEL LAYERS WIDTH BATCH SPARSITY THREADS``
"""

from __future__ import annotations

import ctypes
import itertools
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekern as sk

SETTLING_STEPS = 3


def build(model: str, layers: int, width: int, sparsity: float) -> nn.Sequential:
    """Square linear layers with ReLU between them. The sparse ones never exist as dense ones."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        if model == "sparsekern":
            layer = sk.nn.SparseLinear(width, width, sparsity=sparsity)
        else:
            layer = nn.Linear(width, width)
        if model == "masked-dense":
            prune.random_unstructured(layer, "weight", amount=sparsity)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def status(field: str) -> int:
    """Bytes, from the process's status in Linux: VmRSS is resident now, VmHWM the most that has been."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field + ":"))


def forget_peak() -> None:
    """Start VmHWM anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Returns the C library's free memory to the system, where it can be asked to (glibc).

    It keeps what is below 32 MB for the next call, which hides what a model of that size holds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def size(tensors: list[Tensor]) -> int:
    """Bytes of memory behind tensors, shared memory counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of the tensors that stay from step to step."""
    parameters = list(model.parameters())
    states = itertools.chain.from_iterable(state.values() for state in optimizer.state.values())
    patterns = [m.pattern.data for m in model.modules() if isinstance(m, sk.nn.SparseLinear)]
    masks = [buffer for name, buffer in model.named_buffers() if name.endswith("_mask")]
    return {
        "weights": size(parameters),
        "gradients": size([p.grad for p in parameters if p.grad is not None]),
        "optimizer": size([value for value in states if isinstance(value, Tensor)]),
        "pattern": size(patterns + masks),
    }


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def warm_up(x: Tensor, threads: int) -> None:
    """Threads, and what libraries set aside when first used, are not the model's."""
    torch.set_num_threads(threads)
    small = nn.Linear(x.shape[1], 8)
    train(small, torch.optim.AdamW(small.parameters()), x)


def main(model_name: str, layers: int, width: int, batch: int, sparsity: float, threads: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, width)
    warm_up(x, threads)
    before = status("VmRSS")
    forget_peak()
    model = build(model_name, layers, width, sparsity)
    building = status("VmHWM") - before
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(SETTLING_STEPS):
        train(model, optimizer, x)
    tensors = held(model, optimizer)
    resident = status("VmRSS") - before
    forget_peak()
    train(model, optimizer, x)
    peak = status("VmHWM") - before
    give_back()
    found = {
        **tensors,
        "building_peak": building,
        "step_peak": peak,
        "resident": resident,
        "resident_trimmed": status("VmRSS") - before,
        "process": before,
    }
    json.dump({f"{name}_bytes": value for name, value in found.items()}, sys.stdout)


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    *counts, sparsity, threads = numbers
    main(name, *map(int, counts), float(sparsity), int(threads))
