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

# The files that `network` is saved in by the tests.
SHARDS = 5


def shard(folder, number):
    return folder / f"model-{number:05d}-of-{SHARDS:05d}.safetensors"


def on_meta(make):
    with torch.device("meta"):
        return make()


def snapshot(model):
    """Modules, tensors and what they hold."""
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [id(module) for module in model.modules()],
        [id(tensor) for tensor in tensors],
        [(tensor.is_meta, None if tensor.is_meta else tensor.tolist()) for tensor in tensors],
        [module.pattern for module in model.modules() if isinstance(module, sk.nn.SparseLinear)],
    )
