"""A training step of LeNet-5 at 95 %: forward pass, loss, backward pass and SGD with momentum."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekern as sk
from benchmarks.contenders import DENSE, SPARSE
from benchmarks.measure import LARGEST_ERROR, relative_error
from benchmarks.settings import Settings
from sparsekern.experiments.models import LeNet5
from sparsekern.timing import interleave

SPARSITY, BATCH = 0.95, 128
# A gradient passes five layers, each of which adds its rounding.
LARGEST_GRADIENT_ERROR = 10 * LARGEST_ERROR
PROFILED_STEPS = 20
# Steps of one model before the next has its turn: training finds its own data in the caches, not another's.
STEPS_TOGETHER = 10
#: part of the step -> what the profiler's names of its ops contain; the first that fits is taken.
PARTS = {
    "optimizer": ("sgd", "optimizer"),
    "max-pooling": ("max_pool",),
    "ReLU": ("relu", "threshold_backward", "clamp_min"),
    "convolution": ("conv",),
    "linear": ("linear", "addmm", "aten::mm"),
    "loss": ("log_softmax", "nll_loss", "cross_entropy"),
}


def models() -> dict[str, nn.Module]:
    """Dense, masked and sparse, with the same weights: the dense one's are 0 where the others are masked."""
    generator = torch.Generator().manual_seed(0)
    dense = LeNet5(generator=generator)
    sparse = copy.deepcopy(dense)
    sk.sparsify_(sparse, sparsity=SPARSITY, init="keep", generator=generator)
    masked = copy.deepcopy(dense)
    for name, layer in sparse.named_children():
        mask = layer.pattern.to_mask()
        prune.custom_from_mask(masked.get_submodule(name), "weight", mask)
        with torch.no_grad():
            dense.get_submodule(name).weight.mul_(mask)
    return {DENSE: dense, SPARSE: sparse, "masked-dense": masked}


def check(found: dict[str, nn.Module], images: Tensor, labels: Tensor) -> dict[str, float]:
    """Largest relative error of loss and gradients against the dense model in float64, by model."""
    oracle = copy.deepcopy(found[DENSE]).double()
    right_loss = F.cross_entropy(oracle(images.double()), labels)
    right_loss.backward()
    errors = {}
    for name, model in found.items():
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        errors[name] = relative_error(loss.detach(), right_loss.detach())
        for part, layer in model.named_children():
            right = oracle.get_submodule(part).weight.grad
            got, right = _gradient(layer, right)
            errors[name] = max(errors[name], relative_error(got, right))
        model.zero_grad()
    return errors


def _gradient(layer: nn.Module, right: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(layer, (sk.nn.SparseLinear, sk.nn.SparseConv2d)):
        return layer.values.grad, layer.pattern.pack(right)
    if hasattr(layer, "weight_orig"):
        return layer.weight_orig.grad, right * layer.weight_mask
    return layer.weight.grad, right


def step_of(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Fraction of a step's time that each part takes, by the profiler, which slows the small ones most."""
    # The profiler announces its start and stop on standard error, at every level but the highest.
    os.environ.setdefault("KINETO_LOG_LEVEL", "7")
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
    times = dict.fromkeys([*PARTS, "other"], 0.0)
    for event in profiler.key_averages():
        times[_part(event.key.lower())] += event.self_cpu_time_total
    total = sum(times.values())
    return {name: round(value / total, 4) for name, value in times.items()}


def _part(op: str) -> str:
    return next((part for part, marks in PARTS.items() if any(mark in op for mark in marks)), "other")


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record: the step of each model, and the parts of its time."""
    settings.progress("LeNet-5")
    generator = torch.Generator().manual_seed(1)
    batch = 8 if settings.quick else BATCH
    images = torch.rand(batch, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    found = models()
    errors = check(found, images, labels)
    right = {name: step_of(found[name], images, labels) for name in found if _is_right(errors[name])}
    times: dict[str, dict[str, Any]] = {name: {"wrong": errors[name]} for name in found if name not in right}
    for name, timing in interleave(right, seconds=8 * settings.seconds, calls=STEPS_TOGETHER).items():
        times[name] = {**timing.record(), "error": float(f"{errors[name]:.2g}")}
    yield {
        "sparsity": SPARSITY,
        "batch": batch,
        "times": times,
        "shares": {name: shares(step) for name, step in right.items()},
    }


def _is_right(error: float) -> bool:
    return error <= LARGEST_GRADIENT_ERROR
