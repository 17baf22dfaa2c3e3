"""Trains a sparse GPT for a step and saves it, or loads it; prints what that took as JSON.

``python -m benchmarks.huge_process train|load SIZE SPARSITY TOKENS THREADS FOLDER``
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekern as sk
from benchmarks.memory_process import forget_peak, held, status
from sparsekern.experiments.models.gpt import GPT, GPT_SIZES

SEED = 0


@contextmanager
def measured(found: dict[str, Any], name: str) -> Iterator[None]:
    """Seconds, and the most bytes that have been resident meanwhile, as the process has them."""
    forget_peak()
    began = time.perf_counter()
    yield
    found[f"{name}_seconds"] = time.perf_counter() - began
    found[f"{name}_peak_bytes"] = status("VmHWM")


def on_meta(size: str) -> GPT:
    return GPT(GPT_SIZES[size], device="meta")


def initialize(module: nn.Module) -> None:
    """The first contents of what stays dense: GPT-2's embeddings, normalizations as PyTorch has them."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    else:
        module.reset_parameters()


def batch(size: str, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(GPT_SIZES[size].vocabulary, (1, tokens + 1), generator=generator)


def loss_of(model: nn.Module, text: Tensor) -> Tensor:
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def train(size: str, sparsity: float, tokens: int, folder: str) -> dict[str, Any]:
    """Build, one step of AdamW, save."""
    found: dict[str, Any] = {"process_bytes": status("VmRSS")}
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    with measured(found, "build"):
        model = on_meta(size)
        report = sk.sparsify_(
            model, sparsity, init="per_neuron", device="cpu", reset_fn=initialize, generator=generator
        )
    found |= {"positions": report.numel, "nnz": report.nnz}
    text = batch(size, tokens)
    # One pass over each vector, without temporaries of their size.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    with measured(found, "gradients"):
        loss = loss_of(model, text)
        loss.backward()
    with measured(found, "update"):
        optimizer.step()
    found |= {f"{kind}_bytes": count for kind, count in held(model, optimizer).items()}
    found["dense_parameters"] = sum(p.numel() for p in model.parameters()) - report.nnz
    optimizer.zero_grad()
    with measured(found, "save"):
        files = sk.export.save_sharded(model, folder, shard_bytes=10**9)
    found |= {"files": len(files), "saved_bytes": sum(path.stat().st_size for path in files)}
    with torch.no_grad():
        found |= {"loss": loss.item(), "loss_after": loss_of(model, text).item()}
    return found


def load(size: str, sparsity: float, tokens: int, folder: str) -> dict[str, Any]:
    """Load into a model on meta, whose layers become sparse as they come."""
    found: dict[str, Any] = {"process_bytes": status("VmRSS")}
    model = on_meta(size)
    with measured(found, "load"):
        sk.export.load_sharded(model, folder, reset_fn=initialize)
    with torch.no_grad():
        found["loss_after"] = loss_of(model, batch(size, tokens)).item()
    return found


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {"train": train, "load": load}

if __name__ == "__main__":
    action, size, sparsity, tokens, threads, folder = sys.argv[1:]
    torch.set_num_threads(int(threads))
    json.dump(ACTIONS[action](size, float(sparsity), int(tokens), folder), sys.stdout)
