"""What the processes of `test_distributed.py` and `test_fsdp.py` run, each function under its own name.

The fixture `processes` runs this file in every process. All is float64, where the sums of one process and
those of several differ by far less than any two scores that a selection has to tell apart.
"""

from __future__ import annotations

import contextlib
import copy
import warnings

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import sparsekern as sk
from sparsekern.methods.ranks import full, write_full
from sparsekern.nn import SparseLayer, SparseLinear
from tests.processes import run

METHODS = {
    "RigL": sk.RigL,
    "RigLInverted": sk.RigLInverted,
    "SET": sk.SET,
    "SNFS": sk.SNFS,
    "Static": sk.Static,
}
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
}
EVERY, BATCH = 5, 16


def network(seed=0, storage="compact"):
    """A convolution and two linear layers, none of whose sizes is a multiple of another's."""
    generator = torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Sequential(nn.Linear(5 * 4 * 4, 21), nn.Tanh()),
        nn.Linear(21, 7),
    ).double()
    sk.sparsify_(model, sparsity=0.8, init="per_neuron", storage=storage, generator=generator)
    return model


def batch(step):
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(BATCH, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(BATCH, 7, generator=generator, dtype=torch.float64)


def outcome(model, optimizer, method):
    """All that a run leaves behind, whole on each process."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}
    parameters = dict(model.named_parameters())
    state = {
        f"{name}.{key}": whole(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    return {
        "patterns": {name: layer.mask for name, layer in layers.items()},
        "parameters": {name: whole(parameter) for name, parameter in parameters.items()},
        "state": state,
        "explored": {layer.name: layer.explored.words for layer in method.layers},
        "steps": method.steps,
        "updates": method.updates,
        "grown": 0 if method.last_update is None else method.last_update.grown,
    }


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def shard(model, rank, size):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if size > 1:
        mesh = init_device_mesh("cpu", (size,))
        fully_shard(model[3], mesh=mesh)
        fully_shard(model, mesh=mesh)


def train(
    rank,
    size,
    method="RigL",
    optimizer="adamw",
    wrapper="ddp",
    attach="inner",
    storage="compact",
    seed=0,
    steps=30,
    accumulate=1,
    no_sync=False,
    save_after=None,
    checkpoint=None,
    **options,
):
    """A run on this rank's part of every batch; one process alone takes the whole of each."""
    model = network(seed, storage)
    done = 0
    if checkpoint is not None:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        done = saved["step"]
    used = model
    if wrapper == "fsdp":
        shard(model, rank, size)
    elif size > 1:
        used = DistributedDataParallel(model)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    dynamic = METHODS[method](
        used if attach == "wrapper" else model, optimizer, update_every=EVERY, **options
    )
    if checkpoint is not None:
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(done, steps):
        optimizer.zero_grad()
        x, target = (part.chunk(size)[rank].chunk(accumulate) for part in batch(step))
        for part in range(accumulate):
            last = part == accumulate - 1
            with used.no_sync() if no_sync and size > 1 and not last else contextlib.nullcontext():
                loss = (used(x[part]) - target[part]).square().mean()
                (loss / accumulate).backward()
        optimizer.step()
        if save_after is not None and step + 1 == save_after[0] and rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, save_after[1])
    return outcome(model, optimizer, dynamic)


def resumed_sharded(rank, size, steps=20):
    """The last steps of a run, unbroken, and of one that loads its distributed checkpoint on the way."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    whole_state = StateDictOptions(full_state_dict=True)
    runs = []
    for seed in (0, 7):
        model = network(seed)
        shard(model, rank, size)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        runs.append((model, optimizer, sk.RigL(model, optimizer, update_every=EVERY)))

    def go(model, optimizer, some_steps):
        for step in some_steps:
            optimizer.zero_grad()
            x, target = (part.chunk(size)[rank] for part in batch(step))
            (model(x) - target).square().mean().backward()
            optimizer.step()

    (model, optimizer, method), (other, its_optimizer, its_method) = runs
    go(model, optimizer, range(steps // 2))
    # A copy, as a file would be: its counts of steps are those of the optimizer itself.
    saved = copy.deepcopy(get_state_dict(model, optimizer, options=whole_state))
    # These functions know the parts of an optimizer's state dict that all of them have.
    saved_method = method.state_dict()
    go(model, optimizer, range(steps // 2, steps))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the optimizer's state has none of RigL")
        set_state_dict(
            other,
            its_optimizer,
            model_state_dict=saved[0],
            optim_state_dict=saved[1],
            options=whole_state,
        )
    its_method.load_state_dict(saved_method)
    go(other, its_optimizer, range(steps // 2, steps))
    return [outcome(*run) for run in runs]


def two_four(rank, size, wrapper, options, steps=8):
    """A run with 2:4 weights: those of the whole model, and the mask of every forward pass."""
    torch.manual_seed(rank if wrapper == "ddp" else 0)  # DDP sends the weights of the first process to all
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8)).double()
    if wrapper == "ddp":
        sk.sparsify_(model, pattern="2:4", **options)
    else:
        sk.sparsify_(
            model, pattern="2:4", init="dense", generator=torch.Generator().manual_seed(0), **options
        )
    masks = []
    model[0].register_forward_hook(lambda layer, inputs, output: masks.append(layer.mask))
    used = model
    if wrapper == "fsdp" and size > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    elif size > 1:
        used = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    for step in range(steps):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(BATCH, 16, generator=generator, dtype=torch.float64).chunk(size)[rank]
        used(x).square().mean().backward()
        optimizer.step()
    parameters = {name: whole(parameter) for name, parameter in model.named_parameters()}
    return {"parameters": parameters, "masks": torch.stack(masks)}


def opposite(rank, size, method="RigL"):
    """One update where position 2 has gradients of 10 and -10, and position 3 has 1 and 1."""
    layer = SparseLinear(8, 1, bias=False, mask=(torch.arange(8) < 2)[None], dtype=torch.float64)
    with torch.no_grad():
        layer.values.copy_(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD(layer.parameters(), 0.0)
    METHODS[method](layer, optimizer, update_every=1, drop_fraction=0.5)
    gradients = torch.tensor([[0, 0, 10, 1, 0, 0, 0, 0], [0, 0, -10, 1, 0, 0, 0, 0]], dtype=torch.float64)
    DistributedDataParallel(layer)(gradients[rank]).sum().backward()
    optimizer.step()
    return layer.mask[0].nonzero().flatten().tolist()


def refused(rank, size, differing):
    """The error of a step between processes that do not hold the same model."""
    model = DistributedDataParallel(network(seed=rank if differing == "patterns" else 0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = sk.RigL(model, optimizer, update_every=EVERY)
    if differing == "steps":
        method.load_state_dict({**method.state_dict(), "steps": 3 if rank == size - 1 else 0})
    model(batch(0)[0]).sum().backward()
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error)
    return "no error"


def not_finite_in_one(rank, size):
    """The error, and whether the Parameters are as they were, where one process alone sees an infinity."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sk.RigL(model, optimizer, update_every=1, nonfinite="raise")
    before = copy.deepcopy(model.state_dict())
    x, _ = batch(0)
    if rank == size - 1:
        x[0, 0, 0, 0] = float("inf")
    DistributedDataParallel(model)(x).sum().backward()
    try:
        optimizer.step()
    except FloatingPointError as error:
        unchanged = all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        return str(error), unchanged
    return "no error", False


def bytes_sent(rank, size, method="RigL"):
    """Bytes that DDP sends for the gradients of each step, and bytes of the Parameters."""
    model = DistributedDataParallel(network())
    sent = []

    def count(_, bucket):
        sent.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(None, bucket)

    model.register_comm_hook(None, count)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    METHODS[method](model, optimizer, update_every=2)
    per_step = []
    for step in range(6):
        model(batch(step)[0]).sum().backward()
        optimizer.step()
        per_step.append(sum(sent))
        sent.clear()
    layers = [m for m in model.modules() if isinstance(m, SparseLayer)]
    stored = sum(layer.pattern.nnz + layer.bias.numel() for layer in layers)
    return {"per_step": per_step, "stored": 8 * stored, "dense": 8 * sum(m.pattern.numel for m in layers)}


def pruned(rank, size):
    """Gradual pruning, each process on its part of the batch; patterns, weights, and what is refused."""
    model = network(storage="masked")
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = OPTIMIZERS["sgd"](wrapped.parameters())
    options = {"sparsity": 0.95, "begin": 2, "end": 7, "update_every": 2}
    refused = []
    for each in (wrapped, nn.Sequential(wrapped)) if size > 1 else ():
        try:
            sk.GradualPruning(each, optimizer, **options)
        except ValueError as error:
            refused.append(str(error))
    method = sk.GradualPruning(wrapped, optimizer, compact=False, **options)
    for step in range(9):
        optimizer.zero_grad()
        x, y = (part.chunk(size)[rank] for part in batch(step))
        (wrapped(x) - y).square().mean().backward()
        optimizer.step()
    return {
        "patterns": {layer.name: layer.pattern.data for layer in method.layers},
        "parameters": dict(model.state_dict()),
        "updates": method.updates,
        "nnz": sum(layer.pattern.nnz for layer in method.layers),
        "refused": refused,
    }


class Branches(nn.Module):
    """A trunk, and branches of which a call uses some."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(13, 11)
        self.branches = nn.ModuleDict({name: nn.Linear(11, 9) for name in ("all", "first", "none")})

    def forward(self, x, names):
        hidden = self.trunk(x).tanh()
        return sum(self.branches[name](hidden).tanh() for name in names)


def branches(rank, size, method="RigL"):
    """Only the first half of each batch goes through branch "first", and nothing through branch "none"."""
    torch.manual_seed(0)
    model = Branches().double()
    sk.sparsify_(model, sparsity=0.7, init="per_neuron")
    used = DistributedDataParallel(model, find_unused_parameters=True) if size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    dynamic = METHODS[method](model, optimizer, update_every=2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        optimizer.zero_grad()
        halves = torch.randn(2, 6, 13, generator=generator, dtype=torch.float64)
        for i in [rank] if size > 1 else [0, 1]:
            loss = used(halves[i], ("all", "first") if i == 0 else ("all",)).square().mean()
            (loss if size > 1 else loss / 2).backward()
        optimizer.step()
    return outcome(model, optimizer, dynamic)


def refused_sharded(rank, size, option):
    """The error of a method with an option that weights spread over processes do not allow."""
    model = network()
    shard(model, rank, size)
    options = {
        "grow_gradient": {"grow_gradient": "holdout", "holdout": lambda: model(batch(0)[0]).sum()},
        "new_values": {"new_values": "per_neuron"},
    }
    try:
        sk.RigL(model, torch.optim.SGD(model.parameters(), 0.1), **options[option])
    except ValueError as error:
        return str(error)
    return "no error"


def write_parts(rank, size):
    """Whether what `write_full` writes into a sharded tensor is what `full` then reads, by shape."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (size,))
    equal = {}
    for shape in [(1,), (2,), (7,), (7, 3), (1, 3)]:
        sharded = distribute_tensor(torch.zeros(shape), mesh, [Shard(0)])
        content = torch.arange(sharded.numel(), dtype=torch.float32).view(shape) + 1
        write_full(sharded, content)
        equal["x".join(map(str, shape))] = torch.equal(full(sharded), content)
    return equal


if __name__ == "__rank__":
    run(JOB, globals())  # noqa: F821 (the fixture hands it over)
