"""Memory of training a transformer of a billion weights: dense, masked and sparse, with AdamW."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekern as sk
from benchmarks.contenders import DENSE, SPARSE
from benchmarks.gpu import bars
from benchmarks.memory_process import held

MASKED = "masked-dense"
MODELS = (SPARSE, DENSE, MASKED)
SPARSITY = 0.90
HEADS = 16
# 20 blocks of 12 x 2048^2 weights are 1.007e9. Embeddings, which nobody makes sparse, are left out.
SIZE = {"blocks": 20, "width": 2048, "tokens": 2048}
QUICK_SIZE = {"blocks": 2, "width": 64, "tokens": 32}
SETTLING_STEPS, TIMED_STEPS = 2, 3


class MaskedLinear(nn.Linear):
    """``F.linear(x, weight * mask)``: how sparse training is simulated."""

    def __init__(self, inputs: int, outputs: int, sparsity: float, device: str) -> None:
        super().__init__(inputs, outputs, device=device)
        self.register_buffer("weight_mask", torch.rand_like(self.weight) >= sparsity)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight_mask, self.bias)


def linear(model: str, inputs: int, outputs: int, device: str) -> nn.Module:
    """A layer of a model, made where it is to be."""
    if model == SPARSE:
        return sk.nn.SparseLinear(inputs, outputs, sparsity=SPARSITY, device=device)
    if model == MASKED:
        return MaskedLinear(inputs, outputs, SPARSITY, device)
    return nn.Linear(inputs, outputs, device=device)


class Block(nn.Module):
    """A block of GPT-2: attention and a feed-forward layer of four times the width."""

    def __init__(self, model: str, width: int, device: str) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, device=device) for _ in range(2))
        self.attend = linear(model, width, 3 * width, device)
        self.project = linear(model, width, width, device)
        self.widen = linear(model, width, 4 * width, device)
        self.narrow = linear(model, 4 * width, width, device)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attend(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(-2))
        return x + self.narrow(F.gelu(self.widen(self.norms[1](x))))


@dataclass(frozen=True)
class MemoryJob:
    """A model in training, with autocast to bfloat16 or all in float32; see `supervise.Job`."""

    model: str
    autocast: bool
    device: str
    quick: bool

    def measure(self, broken: dict[str, str], tell: Callable[[str], None]) -> dict[str, Any]:
        size = QUICK_SIZE if self.quick else SIZE
        about = {"model": self.model, "autocast": self.autocast, **size, "sparsity": self._sparsity}
        if self.model in broken:
            return {**about, "failed": broken[self.model]}
        tell(self.model)
        torch.manual_seed(0)
        gc.collect()
        forget_peak(self.device)
        blocks = (Block(self.model, size["width"], self.device) for _ in range(size["blocks"]))
        network = nn.Sequential(*blocks)
        optimizer = torch.optim.AdamW(network.parameters())
        x = torch.randn(1, size["tokens"], size["width"], device=self.device)
        building = peak(self.device)
        for _ in range(SETTLING_STEPS):
            # Building takes long, and so does compiling in the first step.
            tell(self.model)
            self._step(network, optimizer, x)
        found = {f"{name}_bytes": value for name, value in held(network, optimizer).items()}
        forget_peak(self.device)
        start = time.perf_counter()
        for _ in range(TIMED_STEPS):
            self._step(network, optimizer, x)
        step_ms = 1e3 * (time.perf_counter() - start) / TIMED_STEPS
        found |= {"step_peak_bytes": peak(self.device), "building_peak_bytes": building}
        return {**about, **found, "step_ms": round(step_ms, 3)}

    @property
    def _sparsity(self) -> float:
        return 0.0 if self.model == DENSE else SPARSITY

    def _step(self, network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            loss = network(x).float().square().mean()
        loss.backward()
        optimizer.step()
        if x.device.type == "cuda":
            torch.cuda.synchronize()


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> int | None:
    """Most bytes of tensors since `forget_peak`, None where PyTorch does not count them."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def jobs(device: str, quick: bool) -> list[MemoryJob]:
    """The pair that the bar is about first."""
    return [MemoryJob(model, autocast, device, quick) for autocast in (True, False) for model in MODELS]


def total(record: dict[str, Any]) -> int:
    """Bytes that stay from step to step."""
    return sum(record[f"{part}_bytes"] for part in ("weights", "gradients", "optimizer", "pattern"))


def judged(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bar on memory for each setting of autocast that both models were measured with."""
    real = [record for record in records if "failed" not in record and record["width"] == SIZE["width"]]
    by_name = {(record["model"], record["autocast"]): record for record in real}
    found = []
    for autocast in (True, False):
        dense, sparse = by_name.get((DENSE, autocast)), by_name.get((SPARSE, autocast))
        if dense and sparse:
            found.append(bars.MEMORY.record(total(dense) / total(sparse)))
    return found
