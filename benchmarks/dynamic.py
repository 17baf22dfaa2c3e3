"""What updates of the masks cost: a training step with one, and without.

Times of single steps, so that the difference is not lost in the noise of a hundred others.
"""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekern as sk
from benchmarks.settings import Settings
from sparsekern.experiments.models import LeNet5

# Steps between updates in training, which the shares are for, and here.
UPDATE_EVERY, MEASURED_EVERY = 100, 10
STATIC = "Static"
METHODS = (STATIC, "SET", "RigL", "RigLInverted", "RigL holdout")
HOLDOUT = 1000
ROUNDS = 40


def wide_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)
    )


#: name -> (network, sparsity, batch)
CASES: dict[str, tuple[Callable[[], nn.Module], float, int]] = {
    "LeNet-5": (lambda: LeNet5(generator=torch.Generator().manual_seed(0)), 0.95, 128),
    "784-2048-2048-10": (wide_mlp, 0.90, 128),
}


class Training:
    """A network, its method, and the seconds of its steps."""

    def __init__(self, model: nn.Module, method: str, images: Tensor, labels: Tensor) -> None:
        self.plain: list[float] = []
        self.updating: list[float] = []
        self._model, self._images, self._labels = model, images, labels
        self._optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
        name, _, holdout = method.partition(" ")
        examples = (HOLDOUT, *images.shape[1:])
        self._fixed, self._fixed_labels = images[:1].expand(examples).contiguous(), labels[:1].expand(HOLDOUT)
        options = {"grow_gradient": "holdout", "holdout": self._loss_of_holdout} if holdout else {}
        self._method = getattr(sk, name)(model, self._optimizer, update_every=MEASURED_EVERY, **options)

    def _loss_of_holdout(self) -> Tensor:
        return F.cross_entropy(self._model(self._fixed), self._fixed_labels)

    def round(self) -> None:
        """As many steps as there are from one update to the next."""
        for _ in range(MEASURED_EVERY):
            updates, start = self._method.updates, time.perf_counter()
            self._optimizer.zero_grad()
            F.cross_entropy(self._model(self._images), self._labels).backward()
            self._optimizer.step()
            seconds = time.perf_counter() - start
            (self.plain if self._method.updates == updates else self.updating).append(seconds)

    def record(self) -> dict[str, float]:
        """Milliseconds of a step, and of what an update adds to one."""
        plain = statistics.median(self.plain)
        extra = statistics.median(self.updating) - plain if self.updating else 0.0
        return {"step_ms": 1e3 * plain, "update_ms": 1e3 * extra, "rounds": len(self.plain) // MEASURED_EVERY}


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """One record for each network."""
    for name, (build, sparsity, batch) in CASES.items():
        settings.progress(f"dynamic, {name}")
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(8 if settings.quick else batch, 1, 28, 28, generator=generator)
        labels = torch.randint(10, (len(images),), generator=generator)
        model = build()
        sk.sparsify_(model, sparsity=sparsity, init="per_neuron", generator=generator)
        trainings = {m: Training(copy.deepcopy(model), m, images, labels) for m in METHODS}
        order, turns = random.Random(0), list(trainings.values())
        for _ in range(ROUNDS if not settings.quick else 2):
            order.shuffle(turns)
            for training in turns:
                training.round()
        yield {
            "case": name,
            "sparsity": sparsity,
            "batch": len(images),
            "times": {method: training.record() for method, training in trainings.items()},
        }
