"""A case's tensors on a device, and its right results."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from benchmarks.gpu.cases import Case

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Problem:
    """Random tensors of a case.

    Attributes
    ----------
    x, grad_y, bias : Tensor
        Standard normal.
    pattern : sparsekern.Pattern
    values, weight : Tensor
        ``(nnz,)``, standard normal, and the dense weight that they stand for.
    mask : Tensor of bool
    dense_weight : Tensor
        `weight` where active, other numbers elsewhere: what masking contenders start from.
    """

    def __init__(self, case: Case, device: torch.device | str) -> None:
        layer, dtype = case.layer, DTYPES[case.dtype]
        generator = torch.Generator().manual_seed(0)
        on_device = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=on_device, device=device, dtype=dtype)

        self.case, self.layer, self.device, self.dtype = case, layer, torch.device(device), dtype
        self.host_pattern = sk.Pattern.random(
            layer.weight_shape, case.sparsity, block_size=case.block, generator=generator
        )
        self.pattern = self.host_pattern.to(device)
        self.mask = self.pattern.to_mask()
        self.values = normal(self.pattern.nnz)
        self.weight = self.pattern.unpack(self.values)
        self.dense_weight = torch.where(self.mask, self.weight, normal(*layer.weight_shape))
        self._normal = normal

    @cached_property
    def x(self) -> Tensor:
        return self._normal(*self.layer.input_shape)

    @cached_property
    def grad_y(self) -> Tensor:
        return self._normal(*self.layer.output_shape)

    @cached_property
    def bias(self) -> Tensor:
        return self._normal(self.layer.outputs)

    @property
    def geometry(self) -> dict[str, int]:
        """Of a convolution: the options of `conv2d` and its gradients."""
        return {"stride": self.layer.stride, "padding": self.layer.padding}

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, **self.geometry)

    def convolution_gradient(self, grad_y: Tensor, x: Tensor, weight: Tensor, of: str) -> Tensor:
        """The gradient of ``"input"`` or ``"weight"``."""
        options = ([self.layer.stride] * 2, [self.layer.padding] * 2, [1, 1], False, [0, 0], 1)
        wanted = [of == "input", of == "weight", False]
        found = torch.ops.aten.convolution_backward(grad_y, x, weight, None, *options, wanted)
        return found[wanted.index(True)]

    @cached_property
    def right(self) -> Tensor:
        """The product's result: from dense PyTorch in float64, convolutions in float32.

        Gradients of the values are in the pattern's order.
        """
        op, dtype = self.case.op, torch.float64 if self.layer.kind == "linear" else torch.float32
        weight = self.weight.to(dtype)
        if op == "linear":
            return F.linear(self.x.to(dtype), weight, self.bias.to(dtype))
        if op == "linear_grad_input":
            return self.grad_y.to(dtype) @ weight
        if op == "linear_grad_values":
            return self.pattern.pack(self.grad_y.to(dtype).t() @ self.x.to(dtype))
        if op == "conv2d":
            return self.convolve(self.x.to(dtype), weight, self.bias.to(dtype))
        of = "input" if op == "conv2d_grad_input" else "weight"
        gradient = self.convolution_gradient(self.grad_y.to(dtype), self.x.to(dtype), weight, of)
        return gradient if of == "input" else self.pattern.pack(gradient)
