"""Every kernel once on small tensors at odd sizes, for a memory checker, under which everything is slow."""

from __future__ import annotations

import pytest
import torch

import sparsekern as sk
from sparsekern import cpp, triton
from sparsekern import cuda as cuda_backend

SHAPES = {"one-tile": (5, 7), "odd": (70, 130), "small-tiles": (20, 25)}


@pytest.mark.parametrize("samples", [1, 70])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_linear(device, shape, samples):
    pattern = sk.Pattern.random(shape, 0.7).to(device)
    x = torch.randn(samples, shape[1], device=device)
    grad_y = torch.randn(samples, shape[0], device=device)
    for weight in (torch.randn(pattern.nnz, device=device), torch.randn(shape, device=device)):
        masked = weight.dim() > 1
        dense = pattern.unpack(pattern.pack(weight) if masked else weight).double()
        y = sk.ops.linear(x, weight, pattern)
        torch.testing.assert_close(y.double(), x.double() @ dense.T, rtol=1e-4, atol=1e-4)
        grad_x = sk.ops.linear_grad_input(grad_y, weight, pattern)
        torch.testing.assert_close(grad_x.double(), grad_y.double() @ dense, rtol=1e-4, atol=1e-4)
        grad = sk.ops.linear_grad_values(grad_y, x, pattern, dense=masked)
        right = pattern.pack(grad_y.double().T @ x.double())
        torch.testing.assert_close(
            pattern.pack(grad).double() if masked else grad.double(), right, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
def test_conv2d(device, memory_format):
    pattern = sk.Pattern.random((6, 5, 3, 3), 0.5).to(device)
    x = torch.randn(2, 5, 7, 9, device=device).to(memory_format=memory_format).requires_grad_()
    values = torch.randn(pattern.nnz, device=device, requires_grad=True)
    y = sk.ops.conv2d(x, values, pattern, stride=2, padding=1)
    right = torch.nn.functional.conv2d(x, pattern.unpack(values), stride=2, padding=1)
    torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-4)
    found = torch.autograd.grad(y, (x, values), torch.ones_like(y))
    assert all(gradient.isfinite().all() for gradient in found)


def test_values_and_topology(device):
    pattern, other = (sk.Pattern.random((70, 130), 0.7, tile_size=64).to(device) for _ in range(2))
    values = torch.randn(pattern.nnz, device=device)
    assert torch.equal(sk.ops.pack(sk.ops.unpack(values, pattern), pattern), values)
    (moved,) = sk.ops.transfer_all([values], pattern, other)
    assert torch.equal(moved, sk.ops.transfer(values, pattern, other))
    (updated,) = sk.ops.update_topology([values], [pattern], [torch.rand(70, 130, device=device)], [9])
    assert updated.nnz == pattern.nnz
    positions, _ = sk.ops.grow_candidates(
        torch.randn(3, 70, device=device), torch.randn(3, 130, device=device), pattern, 20
    )
    assert len(positions) == 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (132, 68)], ids=str)
def test_two_four_packing(device, shape, dtype):
    weight = (torch.randn(shape) * 30).to(dtype).to(device)
    on_cpu = device.type == "cpu"
    pack = (cpp if on_cpu else cuda_backend).pack_two_four
    moved = cpp if on_cpu else triton
    values, metadata, values_t, metadata_t = pack([weight], True, True)
    dense = moved.unpack_two_four(values, metadata)
    assert torch.equal(dense, moved.unpack_two_four(values_t, metadata_t).t())
    assert torch.equal(moved.gather_two_four(weight, metadata), values)
    if not on_cpu:
        found = cuda_backend.transpose_two_four([values], [metadata])
        assert torch.equal(found[0], values_t)
        assert torch.equal(found[1], metadata_t)
    (values, metadata) = pack([weight[:3].contiguous()], False, False)
    assert torch.equal(moved.gather_two_four(weight[:3], metadata), values)


@pytest.mark.parametrize("samples", [1, 70])
def test_two_four_products(cuda, samples):
    shape = (70, 132)
    weight = torch.randn(shape, device=cuda)
    values, metadata = cuda_backend.pack_two_four([weight], False, False)
    x, grad_y = torch.randn(samples, shape[1], device=cuda), torch.randn(samples, shape[0], device=cuda)
    dense = triton.unpack_two_four(values, metadata).double()
    found = (
        triton.two_four_linear(x, values, None, metadata),
        triton.two_four_linear_grad_input(grad_y, values, metadata),
        triton.two_four_linear_grad_values(grad_y, x, metadata),
    )
    gradient = triton.gather_two_four(grad_y.double().T @ x.double(), metadata)
    for result, right in zip(found, (x.double() @ dense.T, grad_y.double() @ dense, gradient), strict=True):
        torch.testing.assert_close(result.double(), right, rtol=1e-4, atol=1e-4)
