"""Training steps of whole networks in bfloat16 autocast: ResNet-50 and a GPT of a billion positions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekern as sk
from benchmarks.contenders import DENSE, SPARSE
from benchmarks.gpu.conv_contenders import LAST, SPARSE_LAST
from benchmarks.gpu.memory import MASKED, forget_peak
from sparsekern.bench.contenders import mask_dense_
from sparsekern.bench.live_bytes import measure_bytes
from sparsekern.experiments.models.gpt import GPT, GPT_SIZES
from sparsekern.experiments.models.resnet20 import ResNet20
from sparsekern.experiments.models.resnet50 import ResNet50

RESNET, GPT_1B = "ResNet-50", "GPT 1b"
# How sparsity is spread: as in the paper on a sparse ResNet-50, and evenly over blocks that are all alike.
DISTRIBUTIONS = {RESNET: "erk", GPT_1B: "uniform"}
BATCHES = {RESNET: 64, GPT_1B: 2}
QUICK_BATCH = 2
SETTLING_STEPS, TIMED_STEPS = 3, 9


@dataclass(frozen=True)
class TrainingJob:
    """A network in training; see `supervise.Job`.

    Attributes
    ----------
    network : str
        `RESNET` or `GPT_1B`.
    model : str
        Dense, masked-dense or sparse; ResNet-50 also with images in channels-last.
    sparsity : float
        Fraction of zeros, 0 for dense.
    device : str
    quick : bool
        A tiny one of the same kind.
    """

    network: str
    model: str
    sparsity: float
    device: str
    quick: bool

    def measure(self, broken: dict[str, str], tell: Callable[[str], None]) -> dict[str, Any]:
        batch = QUICK_BATCH if self.quick else BATCHES[self.network]
        if self.model in broken:
            return {"batch": batch, "failed": broken[self.model]}
        tell(self.model)
        torch.manual_seed(0)
        forget_peak(self.device)
        network, inputs, classes = self._build(batch)
        if self.network == RESNET:
            options = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
            optimizer = torch.optim.SGD(network.parameters(), **options, fused=True)
        else:
            optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(inputs.device.type, torch.bfloat16):
                loss = F.cross_entropy(network(inputs).flatten(0, -2), classes.flatten())
            loss.backward()
            optimizer.step()

        settling, timed = (1, 1) if self.quick else (SETTLING_STEPS, TIMED_STEPS)
        for _ in range(settling):
            # Building takes long, and so does compiling in the first step.
            tell(self.model)
            step()
        bytes_ = asdict(measure_bytes(network, optimizer, step, inputs.device))
        times = [self._seconds(step) for _ in range(timed)]
        sizes = {f"{name}_bytes": value for name, value in bytes_.items()}
        return {"batch": batch, "step_ms": round(1e3 * statistics.median(times), 3), **sizes}

    def _build(self, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
        """The network, inputs, and classes of the loss."""
        if self.network == RESNET:
            side, classes = (32, 10) if self.quick else (224, 1000)
            network: nn.Module = ResNet20(classes) if self.quick else ResNet50(classes)
            inputs = torch.randn(batch, 3, side, side)
            targets = torch.randint(classes, (batch,))
        else:
            config = GPT_SIZES["tiny" if self.quick else "1b"]
            network = GPT(config, device=self.device)
            inputs, targets = torch.randint(config.vocabulary, (2, batch, config.context)).unbind()
        network = network.to(self.device)
        self._convert(network)
        if self.model in (LAST, SPARSE_LAST):
            network = network.to(memory_format=torch.channels_last)
            inputs = inputs.to(memory_format=torch.channels_last)
        return network, inputs.to(self.device), targets.to(self.device)

    def _convert(self, network: nn.Module) -> None:
        if self.model in (SPARSE, SPARSE_LAST):
            distribution = DISTRIBUTIONS[self.network]
            sk.sparsify_(network, self.sparsity, distribution=distribution, init="per_neuron")
        elif self.model == MASKED:
            layers = [n for n, m in network.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]
            mask_dense_(network, layers, self.sparsity)

    def _seconds(self, step: Callable[[], None]) -> float:
        start = time.perf_counter()
        step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def jobs(device: str, quick: bool) -> list[TrainingJob]:
    """Every contender of both networks, those that answer most first."""
    found = [(GPT_1B, SPARSE, 0.90), (GPT_1B, DENSE, 0.0), (RESNET, SPARSE, 0.90), (RESNET, DENSE, 0.0)]
    found += [(RESNET, LAST, 0.0), (RESNET, SPARSE_LAST, 0.90)]
    found += [(network, SPARSE, 0.80) for network in (GPT_1B, RESNET)]
    found += [(network, MASKED, 0.90) for network in (GPT_1B, RESNET)]
    return [TrainingJob(network, model, sparsity, device, quick) for network, model, sparsity in found]
