"""The work that is measured: shapes, and one random problem of a shape with its right answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk

SPARSITIES = (0.80, 0.90, 0.95, 0.98)
SWEEP = (0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.80, 0.90, 0.95, 0.98)
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class LinearCase:
    """A linear layer on a batch: ``(batch, inputs) -> (batch, outputs)``."""

    batch: int
    inputs: int
    outputs: int
    kind = "linear"

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.inputs}->{self.outputs}"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.inputs)

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def dense_gradients(self, grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return grad_y @ weight, grad_y.t() @ x


@dataclass(frozen=True)
class ConvCase:
    """A convolution of square images with stride 1 that keeps their size."""

    batch: int
    channels: int
    size: int
    outputs: int
    kernel: int
    kind = "conv"

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.channels}x{self.size}x{self.size}->{self.outputs} k{self.kernel}"

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.channels, self.kernel, self.kernel)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, self.size, self.size)

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=self.padding)

    def dense_gradients(self, grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        both = [True, True, False]
        geometry = ([1, 1], [self.padding] * 2, [1, 1], False, [0, 0], 1)
        backward = torch.ops.aten.convolution_backward
        return backward(grad_y, x, weight, None, *geometry, both)[:2]


Case = LinearCase | ConvCase

LINEAR_CASES = (
    LinearCase(128, 784, 300),
    LinearCase(64, 4096, 4096),
    LinearCase(512, 768, 3072),
    LinearCase(2048, 1024, 1024),
    LinearCase(1, 4096, 4096),
    LinearCase(8, 4096, 4096),
)
CONV_CASES = (
    ConvCase(128, 16, 32, 16, 3),
    ConvCase(8, 64, 56, 64, 3),
    ConvCase(8, 256, 14, 256, 3),
    ConvCase(8, 1024, 14, 256, 1),
    ConvCase(4, 512, 28, 512, 3),
)
QUICK_LINEAR_CASES = (LinearCase(16, 96, 80), LinearCase(1, 128, 128))
QUICK_CONV_CASES = (ConvCase(2, 8, 10, 12, 3), ConvCase(2, 16, 8, 8, 1))


class Problem:
    """Random float32 tensors of a case at a sparsity, and its results in float64.

    Attributes
    ----------
    x, bias, grad_y : Tensor
        Standard normal; ``grad_y`` has the output's shape.
    dense_weight : Tensor
        Nonzero everywhere: what masking contenders start from.
    mask : Tensor of bool
        Random, with exactly ``round((1 - sparsity) * numel)`` active positions.
    weight : Tensor
        ``dense_weight`` where active, 0 elsewhere.
    pattern : sparsekern.Pattern
        That of ``mask``.
    """

    def __init__(self, case: Case, sparsity: float, seed: int = 0) -> None:
        self.case = case
        self.sparsity = sparsity
        generator = torch.Generator().manual_seed(seed)
        self.pattern = sk.Pattern.random(case.weight_shape, sparsity, generator=generator)
        self.mask = self.pattern.to_mask()
        self.x = torch.randn(case.input_shape, generator=generator)
        self.dense_weight = torch.randn(case.weight_shape, generator=generator)
        self.weight = self.dense_weight * self.mask
        self.bias = torch.randn(case.outputs, generator=generator)
        output_shape = (case.batch, case.outputs, *case.input_shape[2:])
        self.grad_y = torch.randn(output_shape, generator=generator)

    def answers(self, direction: str) -> tuple[Tensor, ...]:
        """``(y,)``, or ``(grad_x, grad_weight)`` with 0 at inactive positions, from float64 dense PyTorch."""
        x, weight = self.x.double(), self.weight.double()
        if direction == "forward":
            return (self.case.dense(x, weight, self.bias.double()),)
        grad_x, grad_weight = self.case.dense_gradients(self.grad_y.double(), x, weight)
        return grad_x, grad_weight * self.mask
