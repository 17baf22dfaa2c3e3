"""What a network costs where it is used: accuracy, bytes, and the time of a batch beside the dense one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsekern.experiments.data import Dataset
from sparsekern.experiments.evaluate import evaluate_batches
from sparsekern.nn import SparseModule, TwoFourLinearInt8
from sparsekern.timing import CudaClock, cpu_clock, interleave

BATCHES = (1, 64, 1000)
# Meant for the batches of one size through one network.
SECONDS = 0.3


@dataclass(frozen=True)
class StageCost:
    """One row of a pipeline's table.

    Attributes
    ----------
    stage : str
    sparsity : float
        Fraction of zeros over all weights, biases not counted.
    accuracy : float
        On the test set.
    bytes : int
        Weights, what says where they belong, scales and biases.
    dense_bytes : int
        Of the float32 network.
    speedups : dict of str to float
        Batch size -> the dense network's time for a batch over this one's.
    """

    stage: str
    sparsity: float
    accuracy: float
    bytes: int
    dense_bytes: int
    speedups: dict[str, float]

    @property
    def times_smaller(self) -> float:
        return self.dense_bytes / self.bytes


def stage_cost(stage: str, model: nn.Module, dense: nn.Module, dataset: Dataset) -> StageCost:
    """Measure a network beside the dense one of the same shape, in evaluation mode.

    Parameters
    ----------
    stage : str
        The row's name.
    model, dense : torch.nn.Module
        On one device.
    dataset : Dataset
        On that device; its test set is used.
    """
    accuracy = evaluate_batches(model, dataset.test_batches()).accuracy
    return StageCost(
        stage=stage,
        sparsity=1 - _nonzeros(model) / _nonzeros(dense),
        accuracy=accuracy,
        bytes=stored_bytes(model),
        dense_bytes=stored_bytes(dense),
        speedups={str(size): _speedup(model, dense, _batch(dataset, size)) for size in BATCHES},
    )


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a network's weights and biases, with all that is needed to read them."""
    tensors = [*model.parameters(), *model.buffers()]
    masks = [module.mask_bytes for module in model.modules() if isinstance(module, SparseModule)]
    return sum(tensor.nbytes for tensor in tensors) + sum(masks)


def _nonzeros(model: nn.Module) -> int:
    counts = []
    for module in model.modules():
        if isinstance(module, (SparseModule, TwoFourLinearInt8)):
            counts.append(int(module.mask.sum()))
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            counts.append(module.weight.numel())
    return sum(counts)


def _batch(dataset: Dataset, size: int) -> Tensor:
    """So many test images, again from the first where there are fewer."""
    labels = dataset.test_labels
    return dataset.test_examples(torch.arange(size, device=labels.device) % len(labels))[0]


@torch.no_grad()
def _speedup(model: nn.Module, dense: nn.Module, images: Tensor) -> float:
    networks = {"model": model.eval(), "dense": dense.eval()}
    runs = {name: lambda network=network: network(images) for name, network in networks.items()}
    clock = CudaClock() if images.is_cuda else cpu_clock
    times = interleave(runs, seconds=SECONDS, clock=clock)
    return times["dense"].median / times["model"].median
