"""What updates of the masks cost: a hundred training steps and one update, against static masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekern as sk
from benchmarks.settings import Settings
from benchmarks.timing import interleave
from sparsekern.experiments.models import LeNet5

UPDATE_EVERY = 100
STATIC = "Static"
METHODS = (STATIC, "SET", "RigL", "RigLInverted", "RigL holdout")
HOLDOUT = 1000


def wide_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)
    )


#: name -> (network, sparsity, batch)
CASES: dict[str, tuple[Callable[[], nn.Module], float, int]] = {
    "LeNet-5": (lambda: LeNet5(generator=torch.Generator().manual_seed(0)), 0.95, 128),
    "784-2048-2048-10": (wide_mlp, 0.90, 128),
}


def step_of(model: nn.Module, method: str, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A training step; every hundredth is followed by an update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    name, _, holdout = method.partition(" ")
    examples = (HOLDOUT, *images.shape[1:])
    fixed, fixed_labels = images[:1].expand(examples).contiguous(), labels[:1].expand(HOLDOUT)

    def loss_of_holdout() -> Tensor:
        return F.cross_entropy(model(fixed), fixed_labels)

    options = {"grow_gradient": "holdout", "holdout": loss_of_holdout} if holdout else {}
    getattr(sk, name)(model, optimizer, update_every=UPDATE_EVERY, drop_fraction=0.3, **options)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record for each network: milliseconds of a step, the update's share included."""
    for name, (build, sparsity, batch) in CASES.items():
        settings.progress(f"dynamic, {name}")
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(8 if settings.quick else batch, 1, 28, 28, generator=generator)
        labels = torch.randint(10, (len(images),), generator=generator)
        model = build()
        sk.sparsify_(model, sparsity=sparsity, init="per_neuron", generator=generator)
        steps = {method: step_of(copy.deepcopy(model), method, images, labels) for method in METHODS}
        timings = interleave(steps, seconds=24 * settings.seconds, calls=UPDATE_EVERY)
        yield {
            "case": name,
            "sparsity": sparsity,
            "batch": len(images),
            "times": {method: timing.record() for method, timing in timings.items()},
        }
