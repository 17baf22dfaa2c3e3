"""Every op with a Triton kernel at real sizes, against dense PyTorch in float64 on the same device."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk

GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CPU_DTYPES = (torch.float32, torch.bfloat16)
# Block size (None: unstructured), and sparsity.
PATTERNS = {"unstructured": (None, 0.9), "blocks-of-64": (64, 0.8), "blocks-of-128": (128, 0.8)}


class Layer(NamedTuple):
    pattern: sk.Pattern
    x: Tensor
    grad_y: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def linear(cls, device, dtype, samples, rows, columns, kind, masked=False):
        block_size, sparsity = PATTERNS[kind]
        pattern = sk.Pattern.random((rows, columns), sparsity, block_size=block_size).to(device)

        def random(*shape):
            return torch.randn(shape, device=device).to(dtype)

        weight = random(rows, columns) if masked else random(pattern.nnz)
        return cls(pattern, random(samples, columns), random(samples, rows), weight, random(rows))

    def dense(self) -> Tensor:
        masked = self.weight.dim() > 1
        return self.pattern.unpack(self.pattern.pack(self.weight) if masked else self.weight)

    def found(self) -> tuple[Tensor, ...]:
        p, masked = self.pattern, self.weight.dim() > 1
        grad = sk.ops.linear_grad_values(self.grad_y, self.x, p, dense=masked)
        return (
            sk.ops.linear(self.x, self.weight, p, self.bias),
            sk.ops.linear_grad_input(self.grad_y, self.weight, p),
            p.pack(grad) if masked else grad,
        )

    def expected(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, grad_y, dense, bias = (t.to(dtype) for t in (self.x, self.grad_y, self.dense(), self.bias))
        return F.linear(x, dense, bias), grad_y @ dense, self.pattern.pack(grad_y.T @ x)


def check(found, exact, dense) -> None:
    """By norm, no result is farther from float64 than twice the dense op of its dtype, or its rounding."""
    for result, right, same in zip(found, exact, dense, strict=True):
        rounding = torch.finfo(result.dtype).eps * right.norm()
        assert (result.double() - right).norm() <= 2 * (same.double() - right).norm() + rounding


def dtypes(device) -> tuple[torch.dtype, ...]:
    return GPU_DTYPES if device.type == "cuda" else CPU_DTYPES


def sized(device, *sizes: int) -> tuple[int, ...]:
    """Sizes for a GPU, and much smaller ones for the CPU."""
    return sizes if device.type == "cuda" else tuple(max(1, size // 8) for size in sizes)


@pytest.mark.parametrize("masked", [False, True], ids=["compact", "masked"])
@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("samples", [1, 16, 64, 65, 1000])
def test_linear(device, samples, kind, masked):
    for dtype in dtypes(device):
        layer = Layer.linear(device, dtype, samples, *sized(device, 2048, 3072), kind, masked)
        check(layer.found(), layer.expected(torch.float64), layer.expected(dtype))


@pytest.mark.parametrize("shape", [(1000, 1100), (300, 784), (6, 25), (129, 4000)])
def test_linear_at_odd_sizes(device, shape):
    for dtype in dtypes(device):
        layer = Layer.linear(device, dtype, 100, *shape, "unstructured")
        check(layer.found(), layer.expected(torch.float64), layer.expected(dtype))


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
@pytest.mark.parametrize(
    "case",
    [(256, 256, 3, 1, 1), (256, 512, 1, 2, 1), (64, 3, 7, 2, 1), (128, 128, 3, 1, 2), (64, 64, 3, 1, 64)],
    ids=["3x3", "1x1-strided", "first-layer", "two-groups", "depthwise"],
)
def test_conv2d(device, case, memory_format):
    outputs, channels, kernel, stride, groups = case
    if device.type == "cpu":
        outputs, channels = max(groups, outputs // 8), max(groups, channels // 8) if channels > 3 else 3
        groups = min(groups, outputs)
    options = {"stride": stride, "padding": kernel // 2, "groups": groups}
    batch, side = (8, 28) if device.type == "cuda" else (2, 9)
    pattern = sk.Pattern.random((outputs, channels // groups, kernel, kernel), 0.8).to(device)
    for dtype in dtypes(device):
        x = torch.randn(batch, channels, side, side, device=device).to(dtype, memory_format=memory_format)
        values = torch.randn(pattern.nnz, device=device).to(dtype)

        def expected(as_dtype, x=x, values=values):
            images = x.to(as_dtype).requires_grad_()
            weight = pattern.unpack(values.to(as_dtype)).requires_grad_()
            y = F.conv2d(images, weight, **options)
            grads = torch.autograd.grad(y, (images, weight), torch.ones_like(y))
            return y.detach(), grads[0], pattern.pack(grads[1])

        images, leaf = x.clone().requires_grad_(), values.clone().requires_grad_()
        y = sk.ops.conv2d(images, leaf, pattern, **options)
        found = (y.detach(), *torch.autograd.grad(y, (images, leaf), torch.ones_like(y)))
        check(found, expected(torch.float64), expected(dtype))


def test_pack_and_unpack_are_exact(device):
    for shape in (sized(device, 4096, 4096), (64, 32, 3, 3), (6, 25)):
        host = sk.Pattern.random(shape, 0.9)
        values = torch.randn(host.nnz)
        pattern, there = host.to(device), values.to(device)
        dense = sk.ops.unpack(there, pattern)
        assert torch.equal(dense.cpu(), host.unpack(values))
        assert torch.equal(sk.ops.pack(dense, pattern), there)


def test_the_same_bits_twenty_times(device):
    """Sums are split among programs and added in order; what races would change from run to run."""
    for samples in (3, 700):
        layer = Layer.linear(device, torch.float32, samples, *sized(device, 1024, 8192), "unstructured")
        first = layer.found()
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(layer.found(), first, strict=True))


def test_grow_candidates_are_the_largest(device):
    layer = Layer.linear(device, torch.float32, 64, *sized(device, 1024, 1024), "unstructured")
    # Integers, so that sums are exact in any order.
    x, grad_y = layer.x.round(), layer.grad_y.round()
    positions, scores = sk.ops.grow_candidates(grad_y, x, layer.pattern, 100)
    gradient = (grad_y.T @ x).abs().masked_fill(layer.pattern.to_mask(), -1).flatten()
    assert torch.equal(scores.sort(descending=True).values, gradient.topk(100).values)
    assert torch.equal(gradient[positions], scores)
