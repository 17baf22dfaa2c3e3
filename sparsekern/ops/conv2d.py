r"""``conv2d`` and its gradients, with the weight on a pattern.

The three ops are each other's gradients, so they can be differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern.formats.pattern import Pattern
from sparsekern.geometry import Sizes, conv2d_geometry, conv2d_output_size
from sparsekern.ops.arguments import (
    autocast,
    backend_name,
    check_bias,
    check_pattern,
    check_tensor,
    check_values,
)
from sparsekern.ops.observers import tell
from sparsekern.ops.operator import Operator

__all__ = ["check_conv2d_gradient", "conv2d", "conv2d_grad_input", "conv2d_grad_values"]


def _images(like: Tensor, size: Sizes, backend: str) -> Tensor:
    """An unwritten result in the memory format that kernels give it: on GPUs, that of the first argument."""
    keeps_format = like.device.type == "cuda" or backend == "triton"
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    memory_format = torch.channels_last if keeps_format and last else torch.contiguous_format
    return torch.empty(tuple(size), dtype=like.dtype, device=like.device, memory_format=memory_format)


def _conv2d_fake(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Tensor,
    shape: Sizes,
    geometry: Sizes,
    backend: str,
) -> Tensor:
    return _images(x, conv2d_output_size(x.shape, shape, geometry), backend)


def _conv2d_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, pattern, ctx.shape, *ctx.options = inputs
    ctx.save_for_backward(x, values, pattern)


def _conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, pattern = ctx.saved_tensors
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _grad_input(grad, values, pattern, ctx.shape, x.shape, *ctx.options)
    if ctx.needs_input_grad[1]:
        grad_values = _grad_values(grad, x, pattern, ctx.shape, values.shape, *ctx.options)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_values, grad_bias, None, None, None, None


def _grad_input_fake(
    grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sizes, input_size: Sizes, *options: Any
) -> Tensor:
    return _images(grad_y, input_size, options[-1])


def _grad_input_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_y, values, pattern, ctx.shape, _, *ctx.options = inputs
    ctx.save_for_backward(grad_y, values, pattern)


def _grad_input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, values, pattern = ctx.saved_tensors
    grad_grad_y = grad_values = None
    if ctx.needs_input_grad[0]:
        grad_grad_y = _conv2d(grad, values, None, pattern, ctx.shape, *ctx.options)
    if ctx.needs_input_grad[1]:
        grad_values = _grad_values(grad_y, grad, pattern, ctx.shape, values.shape, *ctx.options)
    return grad_grad_y, grad_values, None, None, None, None, None


def _grad_values_fake(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, values_shape: Sizes, *options: Any
) -> Tensor:
    return x.new_empty(tuple(values_shape))


def _grad_values_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_y, x, pattern, ctx.shape, _, *ctx.options = inputs
    ctx.save_for_backward(grad_y, x, pattern)


def _grad_values_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, x, pattern = ctx.saved_tensors
    grad_grad_y = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad_y = _conv2d(x, grad, None, pattern, ctx.shape, *ctx.options)
    if ctx.needs_input_grad[1]:
        grad_x = _grad_input(grad_y, grad, pattern, ctx.shape, x.shape, *ctx.options)
    return grad_grad_y, grad_x, None, None, None, None, None


def _grad_values_ran(arguments: tuple[Any, ...], result: Tensor) -> None:
    grad_y, x, pattern, _, _, geometry, _ = arguments
    tell(pattern, grad_y, x, result, geometry)


_conv2d = Operator(
    "conv2d(Tensor x, Tensor values, Tensor? bias, Tensor pattern, SymInt[] shape, SymInt[] geometry, "
    "str backend) -> Tensor",
    fake=_conv2d_fake,
    save=_conv2d_save,
    backward=_conv2d_backward,
)
_grad_input = Operator(
    "conv2d_grad_input(Tensor grad_y, Tensor values, Tensor pattern, SymInt[] shape, SymInt[] input_size, "
    "SymInt[] geometry, str backend) -> Tensor",
    fake=_grad_input_fake,
    save=_grad_input_save,
    backward=_grad_input_backward,
)
_grad_values = Operator(
    "conv2d_grad_values(Tensor grad_y, Tensor x, Tensor pattern, SymInt[] shape, SymInt[] values_shape, "
    "SymInt[] geometry, str backend) -> Tensor",
    fake=_grad_values_fake,
    save=_grad_values_save,
    backward=_grad_values_backward,
    ran=_grad_values_ran,
)


def _check_input(size: Sizes, pattern: Pattern, geometry: Sizes) -> None:
    """Raise unless an input of `size` (batch, channels, height, width) suits the weight."""
    outputs, channels, kh, kw = pattern.shape
    groups = geometry[-1]
    if outputs % groups:
        raise ValueError(
            f"groups must be a positive divisor of the {outputs} output channels, got {groups!r}"
        )
    if len(size) != 4 or size[1] != groups * channels:
        raise ValueError(
            f"x must have shape (batch, {groups * channels}, height, width) for {groups} groups of "
            f"{channels} channels, got {tuple(size)}"
        )
    if size[2] < 1 or size[3] < 1:
        raise ValueError(f"x must have a height and a width of at least 1, got {size[2]} x {size[3]}")
    _, _, out_h, out_w = conv2d_output_size(size, pattern.shape, geometry)
    if out_h < 1 or out_w < 1:
        raise ValueError(
            f"x must be at least as large as the kernel {kh} x {kw} with its padding and dilation, "
            f"got {size[2]} x {size[3]}"
        )


def conv2d(
    x: Tensor,
    values: Tensor,
    pattern: Pattern,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    r"""``F.conv2d(x, pattern.unpack(values), bias, stride, padding, dilation, groups)``.

    .. math:: y_{bnij} = \mathrm{bias}_n + \sum_{cuv} W_{ncuv} \, x_{b, c, s i + d u - p, s j + d v - p}

    Parameters
    ----------
    x : Tensor
        ``(batch, groups * cin, height, width)``, in any memory format; dtypes as in `linear`.
    values : Tensor
        ``(nnz,)``, the active weights in the pattern's order; or ``(cout, cin, kh, kw)``, a dense weight
        whose inactive positions are read as 0.
    pattern : Pattern
        Of shape ``(cout, cin, kh, kw)``, on x's device.
    bias : Tensor, optional
        ``(cout,)``.
    stride, padding, dilation : int or pair of int
        Vertical and horizontal.
    groups : int
        A divisor of cout.
    backend : str, optional
        ``"cpp"``, ``"triton"`` or ``"reference"``; by default the first that can run the inputs, never the
        reference.

    Returns
    -------
    Tensor
        ``(batch, cout, out_height, out_width)``; contiguous on CPUs, in x's memory format on GPUs. Sums are
        in float32 for 16-bit dtypes, and have the same bits every time and for any number of threads.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above; under autocast, dtypes are made one first.
    BackendError
        When no backend, or not the named one, can run the inputs.

    Notes
    -----
    The gradient of `values` has their shape: nnz elements for compact values; for a dense weight, zeros at
    its inactive positions.
    """
    check_pattern(pattern, 4, x, "x")
    geometry = conv2d_geometry(stride, padding, dilation, groups)
    _check_input(x.shape, pattern, geometry)
    x, values, bias = autocast(x, values, bias)
    check_values(values, pattern, x, "x")
    check_bias(bias, pattern, x, "x")
    return _conv2d(x, values, bias, pattern.data, pattern.shape, geometry, backend_name(backend))


def _check_grad(grad_y: Tensor, size: Sizes, pattern: Pattern, geometry: Sizes) -> None:
    expected = conv2d_output_size(size, pattern.shape, geometry)
    if tuple(grad_y.shape) != expected:
        raise ValueError(f"grad_y must have the output's shape {expected}, got {tuple(grad_y.shape)}")


def check_conv2d_gradient(grad_y: Tensor, x: Tensor, pattern: Pattern, geometry: Sizes) -> None:
    """Raise unless `grad_y` and `x` give the gradient of a weight of the pattern's shape."""
    check_pattern(pattern, 4, x, "x")
    _check_input(x.shape, pattern, geometry)
    check_tensor("grad_y", grad_y)
    _check_grad(grad_y, x.shape, pattern, geometry)
    if grad_y.dtype != x.dtype or grad_y.device != x.device:
        raise ValueError(
            f"grad_y and x must have one dtype and device, got {grad_y.dtype} on {grad_y.device} and "
            f"{x.dtype} on {x.device}"
        )


def conv2d_grad_input(
    grad_y: Tensor,
    values: Tensor,
    pattern: Pattern,
    input_size: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """The gradient of `conv2d` with respect to x: ``torch.nn.grad.conv2d_input`` with the unpacked weight.

    Parameters
    ----------
    grad_y : Tensor
        Of the output's shape.
    values, pattern, stride, padding, dilation, groups, backend :
        As in `conv2d`.
    input_size : sequence of int
        Shape of x.

    Returns
    -------
    Tensor
        Of shape `input_size`.

    Raises
    ------
    TypeError, ValueError, BackendError
        As in `conv2d`.
    """
    check_pattern(pattern, 4, grad_y, "grad_y")
    geometry = conv2d_geometry(stride, padding, dilation, groups)
    _check_input(input_size, pattern, geometry)
    _check_grad(grad_y, input_size, pattern, geometry)
    check_values(values, pattern, grad_y, "grad_y")
    size = tuple(input_size)
    return _grad_input(grad_y, values, pattern.data, pattern.shape, size, geometry, backend_name(backend))


def conv2d_grad_values(
    grad_y: Tensor,
    x: Tensor,
    pattern: Pattern,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    dense: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The gradient of `conv2d` with respect to its values: ``torch.nn.grad.conv2d_weight`` where active.

    Parameters
    ----------
    grad_y : Tensor
        Of the output's shape.
    x, pattern, stride, padding, dilation, groups, backend :
        As in `conv2d`.
    dense : bool
        Return the gradient of a dense weight, 0 at inactive positions.

    Returns
    -------
    Tensor
        ``(nnz,)``, or of the pattern's shape.

    Raises
    ------
    TypeError, ValueError, BackendError
        As in `conv2d`.
    """
    geometry = conv2d_geometry(stride, padding, dilation, groups)
    check_conv2d_gradient(grad_y, x, pattern, geometry)
    shape = pattern.shape if dense else (pattern.nnz,)
    return _grad_values(grad_y, x, pattern.data, pattern.shape, shape, geometry, backend_name(backend))
