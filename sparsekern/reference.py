"""The reference backend: every op as one dense PyTorch expression. It defines what the others compute.

It works on any device and dtype that PyTorch has, with dense temporaries; it runs only when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from sparsekern.formats.pattern import Pattern

__all__ = ["KERNELS"]


def _dense(values: Tensor, pattern: Pattern) -> Tensor:
    return pattern.unpack(values if values.dim() == 1 else pattern.pack(values))


def _as_values(dense: Tensor, pattern: Pattern, values_shape: Sequence[int]) -> Tensor:
    values = pattern.pack(dense)
    return values if len(values_shape) == 1 else pattern.unpack(values)


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: Sequence[int]) -> Tensor:
    return F.linear(x, _dense(values, Pattern(pattern)), bias)


def linear_grad_input(grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sequence[int]) -> Tensor:
    return grad_y @ _dense(values, Pattern(pattern))


def linear_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sequence[int], values_shape: Sequence[int]
) -> Tensor:
    dense = grad_y.reshape(-1, shape[0]).T @ x.reshape(-1, shape[1])
    return _as_values(dense, Pattern(pattern), values_shape)


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Tensor,
    shape: Sequence[int],
    geometry: Sequence[int],
    groups: int,
) -> Tensor:
    weight = _dense(values, Pattern(pattern))
    return F.conv2d(x, weight, bias, geometry[0:2], geometry[2:4], geometry[4:6], groups)


def conv2d_grad_input(
    grad_y: Tensor,
    values: Tensor,
    pattern: Tensor,
    shape: Sequence[int],
    input_size: Sequence[int],
    geometry: Sequence[int],
    groups: int,
) -> Tensor:
    weight = _dense(values, Pattern(pattern))
    return conv2d_input(input_size, weight, grad_y, geometry[0:2], geometry[2:4], geometry[4:6], groups)


def conv2d_grad_values(
    grad_y: Tensor,
    x: Tensor,
    pattern: Tensor,
    shape: Sequence[int],
    values_shape: Sequence[int],
    geometry: Sequence[int],
    groups: int,
) -> Tensor:
    dense = conv2d_weight(x, shape, grad_y, geometry[0:2], geometry[2:4], geometry[4:6], groups)
    return _as_values(dense, Pattern(pattern), values_shape)


def pack(dense: Tensor, pattern: Tensor, nnz: int) -> Tensor:
    return Pattern(pattern).pack(dense)


def unpack(values: Tensor, pattern: Tensor, shape: Sequence[int]) -> Tensor:
    return Pattern(pattern).unpack(values)


def transfer(values: Tensor, source: Tensor, target: Tensor, nnz: int) -> Tensor:
    return Pattern(target).pack(Pattern(source).unpack(values))


KERNELS = {
    function.__name__: function
    for function in (
        linear,
        linear_grad_input,
        linear_grad_values,
        conv2d,
        conv2d_grad_input,
        conv2d_grad_values,
        pack,
        unpack,
        transfer,
    )
}
