"""Dynamic methods on a device: whole numbers make every gradient exact, so the new masks are known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsekern as sk
from sparsekern.nn import SparseLayer

DTYPES = [torch.float32, torch.bfloat16]


def network(device, storage="compact", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 36, 40)).to(dtype)
    sk.sparsify_(model, sparsity=0.8, storage=storage, generator=generator)
    for layer in sparse_layers(model).values():
        layer.write_dense(whole_numbers(layer.pattern.shape, 2, generator, dtype))
    return model.to(device)


def sparse_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


def whole_numbers(shape, largest, generator, dtype):
    return torch.randint(-largest, largest + 1, shape, generator=generator).to(dtype)


def expected_masks(model, inputs, fraction, scores):
    """By the dense gradient of each layer alone, and the reference's update."""
    masks = {}
    for name, layer in sparse_layers(model).items():
        dense = layer.to_dense_module().float()
        dense.zero_grad()
        x, grad_y = inputs[name]
        dense(x.float()).backward(grad_y.float())
        pattern = layer.pattern
        values = pattern.pack(layer.to_dense().detach())
        count = int(pattern.nnz * fraction)
        (new,) = sk.ops.update_topology(
            [values], [pattern], [scores(dense.weight.grad)], [count], by="value", backend="reference"
        )
        masks[name] = new.to_mask()
    return masks


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize(
    ("method", "scores"),
    [("RigL", torch.abs), ("RigLInverted", lambda g: -g.abs())],
    ids=["RigL", "inverted"],
)
def test_masks_follow_the_dense_gradient(device, method, scores, storage, dtype):
    model = network(device, storage, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    driven = getattr(sk, method)(model, optimizer, update_every=1, drop_fraction=0.4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        # Each layer by itself, so that the numbers stay small.
        inputs = {}
        optimizer.zero_grad()
        for name, layer in sparse_layers(model).items():
            shape = (2, 4, 6, 6) if name == "0" else (3, 576)
            x = whole_numbers(shape, 1, generator, dtype).to(device)
            y = layer(x)
            grad_y = whole_numbers(y.shape, 1, generator, dtype).to(device)
            y.backward(grad_y)
            inputs[name] = x, grad_y
        masks = expected_masks(model, inputs, 0.4, scores)
        before = {name: layer.to_dense().detach() for name, layer in sparse_layers(model).items()}
        optimizer.step()
        for name, layer in sparse_layers(model).items():
            assert torch.equal(layer.mask, masks[name])
            assert torch.equal(layer.to_dense(), torch.where(masks[name], before[name], 0))
    assert driven.updates == 3
    assert driven.last_update.grown > 0


def test_random_growth_is_that_of_the_cpu(cuda):
    models = [network("cpu"), network(cuda)]
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        sk.SET(model, optimizer, update_every=1, seed=5)
        device = model[0].values.device
        model(torch.ones(2, 4, 6, 6, device=device)).sum().backward()
        optimizer.step()
    for mine, theirs in zip(sparse_layers(models[0]).values(), sparse_layers(models[1]).values()):
        assert torch.equal(mine.mask, theirs.mask.cpu())


def test_block_patterns_stay_whole(device):
    layer = sk.nn.SparseLinear(256, 256, pattern=sk.Pattern.random((256, 256), 0.7, block_size=64)).to(device)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    method = sk.RigL(nn.Sequential(layer), optimizer, update_every=1, drop_fraction=0.5)
    before = layer.pattern
    layer(torch.randn(8, 256, device=device)).square().sum().backward()
    optimizer.step()
    blocks = layer.mask.view(4, 64, 4, 64).sum((1, 3))
    assert set(blocks.unique().tolist()) == {0, 64 * 64}
    assert layer.pattern.num_tiles == before.num_tiles
    assert method.last_update.dropped > 0


@pytest.mark.parametrize("method", ["RigL", "SET", "SNFS"])
def test_training_resumes_exactly(device, method):
    def steps(model, optimizer, first, last):
        for seed in range(first, last):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(8, 4, 6, 6, generator=generator).to(device)
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.arange(8, device=device)).backward()
            optimizer.step()

    def make():
        model = network(device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
        return model, optimizer, getattr(sk, method)(model, optimizer, update_every=3)

    model, optimizer, driven = make()
    steps(model, optimizer, 0, 4)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    steps(model, optimizer, 4, 8)
    other, other_optimizer, resumed = make()
    other.load_state_dict(states[0])
    other_optimizer.load_state_dict(states[1])
    steps(other, other_optimizer, 4, 8)
    assert resumed.updates == driven.updates == 2
    for mine, theirs in zip(other.parameters(), model.parameters()):
        assert torch.equal(mine, theirs)


def test_a_step_that_grad_scaler_leaves_out_does_not_count(cuda):
    model = network(cuda)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    method = sk.RigL(model, optimizer, update_every=2)
    scaler = torch.amp.GradScaler("cuda")
    for factor in (1.0, float("inf"), 1.0):
        with torch.autocast("cuda", torch.float16):
            loss = model(torch.randn(8, 4, 6, 6, device=cuda)).float().square().mean() * factor
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert (method.steps, method.updates) == (2, 1)


def recorded(model, x):
    """Forward and backward pass in a CUDA graph, to be replayed; on a CPU they just run again."""

    def run():
        model(x).square().sum().backward()

    if x.device.type == "cpu":
        return lambda: (model.zero_grad(), run())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # compiles, and uploads what is uploaded once
    torch.cuda.current_stream().wait_stream(stream)
    # A replay writes gradients that were made in the graph, and adds to others.
    model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def test_a_cuda_graph_is_captured_anew_after_an_update(device):
    """Steps and updates, by the gradient of a holdout batch, are outside of it."""
    generator = torch.Generator().manual_seed(2)
    x, held = (torch.randn(8, 4, 6, 6, generator=generator).to(device) for _ in range(2))

    first = network(device)

    def make():
        model = copy.deepcopy(first)
        optimizer = torch.optim.SGD(model.parameters(), 1e-5, momentum=0.9)

        def holdout():
            return model(held).square().sum()

        options = {"update_every": 3, "grow_gradient": "holdout", "holdout": holdout}
        return model, optimizer, sk.RigL(model, optimizer, **options)

    model, optimizer, method = make()
    replay, captured_at = recorded(model, x), 0
    eager, eager_optimizer, other = make()
    for _ in range(10):
        if method.updates != captured_at:
            replay, captured_at = recorded(model, x), method.updates
        replay()
        optimizer.step()
        eager_optimizer.zero_grad()
        eager(x).square().sum().backward()
        eager_optimizer.step()
    assert (method.steps, method.updates) == (other.steps, other.updates) == (10, 3)
    for layer, same in zip(method.layers, other.layers):
        assert layer.pattern == same.pattern
    for mine, theirs in zip(model.parameters(), eager.parameters()):
        assert torch.equal(mine, theirs)
