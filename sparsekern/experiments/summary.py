"""What a sparse run costs, next to the dense network of the same shape: weights, bytes, time."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from sparsekern.experiments.build import build_model
from sparsekern.experiments.data import Dataset
from sparsekern.experiments.recipe import Recipe
from sparsekern.experiments.trainer import Trainer
from sparsekern.nn import SparseModule


@dataclass(frozen=True)
class TrainingBytes:
    """Bytes that a model's training holds, activations not included."""

    weights: int
    gradients: int
    optimizer: int
    patterns: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.patterns


def training_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingBytes:
    """Count the tensors that are there: call it after a step, when gradients and optimizer state exist."""
    parameters = list(model.parameters())
    state = [value for slots in optimizer.state.values() for value in slots.values()]
    return TrainingBytes(
        weights=sum(p.nbytes for p in parameters),
        gradients=sum(p.grad.nbytes for p in parameters if p.grad is not None),
        optimizer=sum(value.nbytes for value in state if isinstance(value, torch.Tensor) and value.ndim > 0),
        patterns=sum(m.mask_bytes for m in model.modules() if isinstance(m, SparseModule)),
    )


@dataclass(frozen=True)
class Comparison:
    """A sparse network and its dense twin, freshly built, trained for a few steps on the same batches."""

    dense_bytes: TrainingBytes
    sparse_bytes: TrainingBytes
    dense_milliseconds: float
    sparse_milliseconds: float
    steps: int
    batch_size: int
    threads: int

    def __str__(self) -> str:
        rows = [
            ("weights and biases", self.dense_bytes.weights, self.sparse_bytes.weights),
            ("gradients", self.dense_bytes.gradients, self.sparse_bytes.gradients),
            ("optimizer state", self.dense_bytes.optimizer, self.sparse_bytes.optimizer),
            ("patterns", self.dense_bytes.patterns, self.sparse_bytes.patterns),
            ("total", self.dense_bytes.total, self.sparse_bytes.total),
        ]
        lines = [f"{'bytes held to train':<20} {'dense':>10} {'sparse':>10} {'ratio':>7}"]
        for name, dense, sparse in rows:
            ratio = f"{dense / sparse:>6.1f}x" if dense and sparse else ""
            lines.append(f"{name:<20} {dense:>10,} {sparse:>10,} {ratio:>7}".rstrip())
        ratio = self.dense_milliseconds / self.sparse_milliseconds
        lines.append(
            f"{'ms a training step':<20} {self.dense_milliseconds:>10.2f} {self.sparse_milliseconds:>10.2f} "
            f"{ratio:>6.2f}x"
        )
        lines.append(
            f"(median of {self.steps} steps of {self.batch_size} examples, threads: {self.threads}; "
            "bytes without activations)"
        )
        return "\n".join(lines)


def compare_with_dense(recipe: Recipe, dataset: Dataset, device: torch.device) -> Comparison:
    """Measure ``recipe.benchmark_steps`` training steps of the sparse and the dense network, taking turns.

    Both are built anew, so a trained network is left alone. One step each goes before, untimed.
    """
    sparse = Trainer(build_model(recipe, dataset)[0].to(device), dataset, recipe)
    dense = Trainer(build_model(recipe.dense_twin(), dataset)[0].to(device), dataset, recipe.dense_twin())
    seconds: dict[Trainer, list[float]] = {sparse: [], dense: []}
    for step in range(recipe.benchmark_steps + 1):
        for trainer, times in seconds.items():
            started = time.perf_counter()
            trainer.train_step()
            _wait(device)
            if step:
                times.append(time.perf_counter() - started)
    comparison = Comparison(
        dense_bytes=training_bytes(dense.model, dense.optimizer),
        sparse_bytes=training_bytes(sparse.model, sparse.optimizer),
        dense_milliseconds=1e3 * statistics.median(seconds[dense]),
        sparse_milliseconds=1e3 * statistics.median(seconds[sparse]),
        steps=recipe.benchmark_steps,
        batch_size=recipe.batch_size,
        threads=torch.get_num_threads(),
    )
    sparse.close()
    dense.close()
    return comparison


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
