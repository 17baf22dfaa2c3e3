"""Streams, CUDA graphs, torch.compile, autocast, other devices, much memory: how the ops fit in on a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import sparsekern as sk


def model(device) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(64 * 8 * 8, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )
    sk.sparsify_(layers, sparsity=0.8, init="per_neuron")
    return layers.to(device)


def images(device, batch=16):
    return torch.randn(batch, 3, 8, 8, device=device)


def step(layers, x):
    layers.zero_grad()
    layers(x).square().mean().backward()
    return [parameter.grad.clone() for parameter in layers.parameters()]


def test_training_lowers_the_loss(device):
    layers = model(device)
    optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-3)
    x, labels = images(device), torch.arange(16, device=device) % 10
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(layers(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_gradients_are_those_of_the_cpu(cuda):
    x = images("cpu")
    for found, right in zip(step(model(cuda), x.to(cuda)), step(model("cpu"), x), strict=True):
        torch.testing.assert_close(found.cpu(), right, rtol=1e-3, atol=1e-5)


def test_compiled_model_equals_the_eager_one(device):
    layers, x = model(device), images(device)
    compiled = torch.compile(
        layers, fullgraph=True, backend="aot_eager" if device.type == "cpu" else "inductor"
    )
    torch.testing.assert_close(compiled(x), layers(x), rtol=1e-4, atol=1e-4)


def test_compiled_model_on_channels_last(device):
    layers, x = model(device), images(device).to(memory_format=torch.channels_last)
    compiled = torch.compile(layers, backend="aot_eager" if device.type == "cpu" else "inductor")
    torch.testing.assert_close(compiled(x), layers(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast(device, dtype):
    if device.type == "cpu" and dtype == torch.float16:
        pytest.skip("the CPU kernels have no float16")
    layers, x = model(device), images(device)
    with torch.autocast(device.type, dtype):
        y = layers(x)
        loss = y.float().square().mean()
    loss.backward()
    assert y.dtype == dtype
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layers.parameters())
    torch.testing.assert_close(y.float(), layers(x), rtol=0.1, atol=0.1)


def test_a_stream_of_its_own(cuda):
    layers, x = model(cuda), images(cuda)
    right = step(layers, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Long work first: an op on another stream would overtake it.
        torch.cuda._sleep(50_000_000)
        late = x * 1
        found = step(layers, late)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_cuda_graph(cuda):
    layers, x = model(cuda), images(cuda)
    right = step(layers, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(layers, x)  # compiles, and uploads what is uploaded once
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(layers, x)
    for gradient in found:
        gradient.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_a_second_device(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    x = images("cpu")
    first, second = (step(model(f"cuda:{i}"), x.to(f"cuda:{i}")) for i in (0, 1))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))
    pattern = sk.Pattern.random((64, 64), 0.9).to("cuda:0")
    with pytest.raises(ValueError, match="pattern and x must be on one device"):
        sk.ops.linear(torch.randn(2, 64, device="cuda:1"), torch.randn(pattern.nnz, device="cuda:1"), pattern)


def test_more_than_two_to_the_31_elements(cuda):
    samples, rows, columns = 2**21 + 3, 64, 1024
    needed = 2 * samples * (columns + rows) * 3
    if torch.cuda.mem_get_info(cuda)[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of memory")
    pattern = sk.Pattern.random((rows, columns), 0.9).to(cuda)
    values = torch.randn(pattern.nnz, device=cuda, dtype=torch.bfloat16)
    x = torch.randn(samples, columns, device=cuda, dtype=torch.bfloat16)
    y = sk.ops.linear(x, values, pattern)
    grad_x = sk.ops.linear_grad_input(y, values, pattern)
    dense = pattern.unpack(values).double()
    for part in (slice(0, 100), slice(samples - 100, samples)):
        right = x[part].double() @ dense.T
        torch.testing.assert_close(y[part].double(), right, rtol=2e-2, atol=2e-2 * right.abs().max().item())
        right = y[part].double() @ dense
        torch.testing.assert_close(
            grad_x[part].double(), right, rtol=2e-2, atol=2e-2 * right.abs().max().item()
        )


def test_tuning_keeps_results_right(cuda):
    from sparsekern.kernels.tuning import tuned

    pattern = sk.Pattern.random((512, 512), 0.9).to(cuda)
    x, values = torch.randn(300, 512, device=cuda), torch.randn(pattern.nnz, device=cuda)
    right = sk.ops.linear(x, values, pattern)
    with tuned():
        found = sk.ops.linear(x, values, pattern)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_cpu_and_gpu_tensors_do_not_mix(cuda):
    pattern = sk.Pattern.random((64, 64), 0.9).to(cuda)
    with pytest.raises(ValueError, match="pattern and x must be on one device"):
        sk.ops.linear(torch.randn(2, 64), torch.randn(pattern.nnz), pattern)
    with pytest.raises(ValueError, match="values and x must be on one device"):
        sk.ops.linear(torch.randn(2, 64, device=cuda), torch.randn(pattern.nnz), pattern)


def test_float64_on_a_gpu_is_refused_with_reasons(cuda):
    pattern = sk.Pattern.random((64, 64), 0.9).to(cuda)
    x, values = torch.randn(2, 64, device=cuda).double(), torch.randn(pattern.nnz, device=cuda).double()
    with pytest.raises(sk.BackendError, match=r"triton: it computes in float32, bfloat16, float16"):
        sk.ops.linear(x, values, pattern)
