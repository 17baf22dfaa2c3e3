"""The networks that tests of exports save, load and convert."""

from __future__ import annotations

import torch
from torch import nn

import sparsekern as sk


def network(storage="compact", seed=0):
    generator = torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)
    )
    sk.sparsify_(model, sparsity=0.7, storage=storage, exclude=["5"], init="per_neuron", generator=generator)
    return model


def dense_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)
    )


X = torch.randn(4, 3, 4, 4, generator=torch.manual_seed(5))
