r"""``linear`` and its gradients: :math:`y = x W^\top + b` with W on a pattern.

The three ops are each other's gradients, so they can be differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from sparsekern.formats.pattern import Pattern
from sparsekern.ops.arguments import (
    autocast,
    backend_name,
    check_bias,
    check_pattern,
    check_tensor,
    check_values,
)
from sparsekern.ops.direct import direct_linear
from sparsekern.ops.observers import tell
from sparsekern.ops.operator import Operator

__all__ = ["check_linear_gradient", "linear", "linear_grad_input", "linear_grad_values"]


def _linear_fake(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: Sequence[int], backend: str
) -> Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))


def _linear_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bias, pattern, ctx.shape, ctx.backend = inputs
    ctx.save_for_backward(x, values, pattern)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, pattern = ctx.saved_tensors
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _grad_input(grad, values, pattern, ctx.shape, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_values = _grad_values(grad, x, pattern, ctx.shape, values.shape, ctx.backend)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum(tuple(range(grad.dim() - 1))) if grad.dim() > 1 else grad
    return grad_x, grad_values, grad_bias, None, None, None


def _grad_input_fake(
    grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sequence[int], backend: str
) -> Tensor:
    return grad_y.new_empty((*grad_y.shape[:-1], shape[1]))


def _grad_input_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_y, values, pattern, ctx.shape, ctx.backend = inputs
    ctx.save_for_backward(grad_y, values, pattern)


def _grad_input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, values, pattern = ctx.saved_tensors
    grad_grad_y = grad_values = None
    if ctx.needs_input_grad[0]:
        grad_grad_y = _linear(grad, values, None, pattern, ctx.shape, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_values = _grad_values(grad_y, grad, pattern, ctx.shape, values.shape, ctx.backend)
    return grad_grad_y, grad_values, None, None, None


def _grad_values_fake(
    grad_y: Tensor,
    x: Tensor,
    pattern: Tensor,
    shape: Sequence[int],
    values_shape: Sequence[int],
    backend: str,
) -> Tensor:
    return x.new_empty(tuple(values_shape))


def _grad_values_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_y, x, pattern, ctx.shape, _, ctx.backend = inputs
    ctx.save_for_backward(grad_y, x, pattern)


def _grad_values_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, x, pattern = ctx.saved_tensors
    grad_grad_y = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad_y = _linear(x, grad, None, pattern, ctx.shape, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_x = _grad_input(grad_y, grad, pattern, ctx.shape, ctx.backend)
    return grad_grad_y, grad_x, None, None, None, None


def _grad_values_ran(arguments: tuple[Any, ...], result: Tensor) -> None:
    grad_y, x, pattern, *_ = arguments
    tell(pattern, grad_y, x, result)


_linear = Operator(
    "linear(Tensor x, Tensor values, Tensor? bias, Tensor pattern, SymInt[] shape, str backend) -> Tensor",
    fake=_linear_fake,
    save=_linear_save,
    backward=_linear_backward,
)
_grad_input = Operator(
    "linear_grad_input(Tensor grad_y, Tensor values, Tensor pattern, SymInt[] shape, str backend) -> Tensor",
    fake=_grad_input_fake,
    save=_grad_input_save,
    backward=_grad_input_backward,
)
_grad_values = Operator(
    "linear_grad_values(Tensor grad_y, Tensor x, Tensor pattern, SymInt[] shape, SymInt[] values_shape, "
    "str backend) -> Tensor",
    fake=_grad_values_fake,
    save=_grad_values_save,
    backward=_grad_values_backward,
    ran=_grad_values_ran,
)


def _check_last(name: str, tensor: Tensor, size: int, what: str) -> None:
    if tensor.dim() == 0 or tensor.shape[-1] != size:
        raise ValueError(f"{name} must have shape (..., {size}), {what}, got {tuple(tensor.shape)}")


def check_linear_gradient(grad_y: Tensor, x: Tensor, pattern: Pattern) -> None:
    """Raise unless ``grad_y.T @ x`` is the gradient of a weight of the pattern's shape."""
    check_pattern(pattern, 2, x, "x")
    _check_last("x", x, pattern.shape[1], "the last dimension being the weight's columns")
    check_tensor("grad_y", grad_y)
    _check_last("grad_y", grad_y, pattern.shape[0], "the last dimension being the weight's rows")
    if grad_y.shape[:-1] != x.shape[:-1] or grad_y.dtype != x.dtype or grad_y.device != x.device:
        raise ValueError(
            f"grad_y must match x but in its last dimension, got {tuple(grad_y.shape)} {grad_y.dtype} on "
            f"{grad_y.device} and {tuple(x.shape)} {x.dtype} on {x.device}"
        )


def linear(
    x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    r"""``F.linear(x, pattern.unpack(values), bias)`` without the dense weight.

    .. math:: y = x W^\top + b

    Parameters
    ----------
    x : Tensor
        ``(..., K)``, any strides; float32, bfloat16, and float64 on a CPU or float16 on a GPU.
    values : Tensor
        ``(nnz,)``, the active weights in the pattern's order; or ``(N, K)``, a dense weight whose inactive
        positions are read as 0.
    pattern : Pattern
        Of shape ``(N, K)``, on x's device.
    bias : Tensor, optional
        ``(N,)``.
    backend : str, optional
        ``"cpp"``, ``"triton"`` or ``"reference"``; by default the first that can run the inputs, never the
        reference.

    Returns
    -------
    Tensor
        ``(..., N)``, contiguous. Sums are in float32 for 16-bit dtypes, and have the same bits every time and
        for any number of threads.

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
    if backend is None and not is_dynamo_compiling() and not torch.is_grad_enabled():
        y = direct_linear(x, values, pattern, bias)
        if y is not None:
            return y
    check_pattern(pattern, 2, x, "x")
    _check_last("x", x, pattern.shape[1], "the last dimension being the weight's columns")
    x, values, bias = autocast(x, values, bias)
    check_values(values, pattern, x, "x")
    check_bias(bias, pattern, x, "x")
    return _linear(x, values, bias, pattern.data, pattern.shape, backend_name(backend))


def linear_grad_input(
    grad_y: Tensor, values: Tensor, pattern: Pattern, *, backend: str | None = None
) -> Tensor:
    r"""``grad_y @ pattern.unpack(values)``: the gradient of `linear` with respect to x.

    Parameters
    ----------
    grad_y : Tensor
        ``(..., N)``.
    values, pattern, backend :
        As in `linear`.

    Returns
    -------
    Tensor
        ``(..., K)``.

    Raises
    ------
    TypeError, ValueError, BackendError
        As in `linear`.
    """
    check_pattern(pattern, 2, grad_y, "grad_y")
    _check_last("grad_y", grad_y, pattern.shape[0], "the last dimension being the weight's rows")
    check_values(values, pattern, grad_y, "grad_y")
    return _grad_input(grad_y, values, pattern.data, pattern.shape, backend_name(backend))


def linear_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Pattern, *, dense: bool = False, backend: str | None = None
) -> Tensor:
    r"""``pattern.pack(grad_y.T @ x)``: the gradient of `linear` with respect to its values.

    Parameters
    ----------
    grad_y : Tensor
        ``(..., N)``.
    x : Tensor
        ``(..., K)``, with the same leading dimensions.
    pattern, backend :
        As in `linear`.
    dense : bool
        Return the ``(N, K)`` gradient of a dense weight, 0 at inactive positions.

    Returns
    -------
    Tensor
        ``(nnz,)``, or ``(N, K)``.

    Raises
    ------
    TypeError, ValueError, BackendError
        As in `linear`.
    """
    check_linear_gradient(grad_y, x, pattern)
    shape = pattern.shape if dense else (pattern.nnz,)
    return _grad_values(grad_y, x, pattern.data, pattern.shape, shape, backend_name(backend))
