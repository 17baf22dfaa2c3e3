"""A small training run, alone, in DDP or sharded by FSDP2, and all that it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sparsekern as sk
from sparsekern.nn import SparseLayer

BATCH = 12
METHODS = {"RigL": sk.RigL, "SET": sk.SET, "SNFS": sk.SNFS, "GradualPruning": sk.GradualPruning}
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
}


@dataclass
class Run:
    """What one process holds of a run."""

    model: nn.Module
    used: nn.Module
    optimizer: torch.optim.Optimizer
    method: Any
    generator: torch.Generator
    noisy: bool

    @property
    def saved(self):
        """As `save_checkpoint` and `load_checkpoint` take it."""
        return self.used, self.optimizer, self.method


def network(seed=0, noisy=False, storage="compact", sparsity=0.8, width=21):
    """Layers whose sizes are no multiples of numbers of processes; the last weight is a single one."""
    generator = torch.manual_seed(seed)
    noise = [nn.BatchNorm1d(width), nn.Dropout(0.2)] if noisy else []
    model = nn.Sequential(
        nn.Linear(13, width),
        nn.Tanh(),
        *noise,
        nn.Sequential(nn.Linear(width, 17), nn.Tanh()),
        nn.Linear(17, 5),
        nn.Linear(5, 1),
    ).double()
    sk.sparsify_(model, sparsity=sparsity, init="per_neuron", storage=storage, generator=generator)
    return model


def start(
    rank=0,
    size=1,
    wrapper="ddp",
    method="RigL",
    optimizer="adamw",
    seed=0,
    noisy=False,
    storage="compact",
    **options,
):
    """A run before its first step."""
    model = used = network(seed, noisy, storage)
    if size > 1 and wrapper == "fsdp":
        shard(model, size)
    elif size > 1:
        used = DistributedDataParallel(model)
    made = OPTIMIZERS[optimizer](model.parameters())
    if method == "GradualPruning":
        options = {"sparsity": 0.95, "begin": 2, "end": 16, "update_every": 3, "compact": False, **options}
    else:
        options = {"update_every": 3, **options}
    attached = None if method is None else METHODS[method](model, made, **options)
    torch.manual_seed(100 * seed + rank)
    return Run(model, used, made, attached, torch.Generator().manual_seed(100 * seed + rank), noisy)


def shard(model, size):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (size,))
    fully_shard(next(part for part in model if isinstance(part, nn.Sequential)), mesh=mesh)
    fully_shard(model, mesh=mesh)


def batch(step):
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(BATCH, 13, generator=generator, dtype=torch.float64)
    return x, torch.randn(BATCH, 1, generator=generator, dtype=torch.float64)


def go(run, steps, rank=0, size=1):
    """Train on this process's part of each step's batch."""
    for step in steps:
        run.optimizer.zero_grad()
        x, target = (part.chunk(size)[rank] for part in batch(step))
        if run.noisy:
            x = x + 0.1 * torch.randn(x.shape, generator=run.generator, dtype=x.dtype)
        (run.used(x) - target).square().mean().backward()
        run.optimizer.step()


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def outcome(run):
    """Weights, patterns, optimizer and method, whole on each process."""
    state = {
        f"{name}.{key}": whole(value)
        for name, parameter in run.model.named_parameters()
        for key, value in run.optimizer.state[parameter].items()
    }
    layers = {name: m for name, m in run.model.named_modules() if isinstance(m, SparseLayer)}
    method = run.method
    result = {
        "parameters": {name: whole(parameter) for name, parameter in run.model.named_parameters()},
        "patterns": {name: layer.pattern.data.clone() for name, layer in layers.items()},
        "state": state,
    }
    if method is not None:
        result |= {"steps": method.steps, "updates": method.updates, "next": method.next_update}
        kept = {layer.name: method.layer_state(layer) for layer in method.layers}
        result["layers"] = {f"{n}.{k}": v for n, entries in kept.items() for k, v in entries.items()}
    return result


def local(run):
    """What differs between processes: buffers, and what is drawn next."""
    drawn = {"drawn": torch.rand(3), "own": torch.rand(3, generator=run.generator)}
    return {**{name: buffer.clone() for name, buffer in run.model.named_buffers()}, **drawn}


def assert_equal(one, other, where=""):
    """All the same, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_equal(value, other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert type(one) is type(other), where
        assert_equal(dict(enumerate(one)), dict(enumerate(other)), where)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def assert_close(one, other):
    """The same patterns and counts; numbers as far as the order of sums lets them be."""
    assert_equal(one["patterns"], other["patterns"], "patterns")
    assert (one["steps"], one["updates"]) == (other["steps"], other["updates"])
    for key in ("parameters", "state"):
        torch.testing.assert_close(one[key], other[key], rtol=1e-8, atol=1e-10)
