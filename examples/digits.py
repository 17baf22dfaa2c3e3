"""What the other examples train on: scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

TEST = 360


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images (1437, 64) and labels, then 360 of each for testing; pixels from 0 to 1."""
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    return images[:-TEST], labels[:-TEST], images[-TEST:], labels[-TEST:]


def network(width: int = 512) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0, batch: int = 128
) -> float:
    """Steps `first` to `steps`, each with a batch that is a function of the step; returns the last loss."""
    images, labels, *_ = digits()
    model.train()
    loss = torch.tensor(float("nan"))
    for step in range(first, steps):
        draws = torch.randint(len(labels), (batch,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[draws]), labels[draws])
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Percent of the test images."""
    *_, images, labels = digits()
    return 100 * (model.eval()(images).argmax(1) == labels).float().mean().item()
