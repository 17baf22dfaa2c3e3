r"""``two_four_linear`` and its gradients: :math:`y = x W^\top + b` with W packed 2:4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern import semi_structured
from sparsekern.backends import AUTOMATIC
from sparsekern.formats.checks import check_choice, describe, is_number
from sparsekern.formats.two_four import TwoFour
from sparsekern.ops.arguments import autocast, backend_name, check_tensor
from sparsekern.ops.operator import Operator
from sparsekern.ops.two_four_values import _gather, _unpack, check_rows

__all__ = [
    "two_four_linear",
    "two_four_linear_dense",
    "two_four_linear_grad_input",
    "two_four_linear_grad_values",
]

GRADIENTS = ("straight_through", "masked")


def _bias_gradient(grad: Tensor) -> Tensor:
    return grad.sum(tuple(range(grad.dim() - 1))) if grad.dim() > 1 else grad


def _input_gradient(
    grad: Tensor,
    values: Tensor,
    metadata: Tensor,
    values_t: Tensor | None,
    metadata_t: Tensor | None,
    backend: str,
) -> Tensor:
    # The transposed copy is faster where it is there, and no function of `values` to autograd.
    if values_t is None or torch.is_grad_enabled():
        return _grad_input(grad, values, metadata, backend)
    return _linear(grad, values_t, None, metadata_t, None, None, backend)


def _preferred(x: Tensor, values: Tensor, *others: Any) -> str:
    """PyTorch's products, which have sparse tensor cores, for many samples and sizes that they take."""
    if not x.is_cuda or x.dtype not in (torch.float16, torch.bfloat16):
        return AUTOMATIC
    rows, columns = values.shape[0], 2 * values.shape[1]
    if x.numel() < semi_structured.FEWEST_SAMPLES * columns:
        return AUTOMATIC
    layout, _ = semi_structured.choose_layout(rows, columns, x.dtype, x.device)
    return AUTOMATIC if layout == "rows" else "torch"


def _linear_fake(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    metadata: Tensor,
    values_t: Tensor | None,
    metadata_t: Tensor | None,
    backend: str,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], values.shape[0]))


def _linear_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, metadata, values_t, metadata_t, ctx.backend = inputs
    ctx.save_for_backward(x, values, metadata, values_t, metadata_t)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *packed = ctx.saved_tensors
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _input_gradient(grad, values, *packed, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_values = _grad_values(grad, x, packed[0], ctx.backend)
    if ctx.needs_input_grad[2]:
        grad_bias = _bias_gradient(grad)
    return grad_x, grad_values, grad_bias, None, None, None, None


def _grad_input_fake(grad_y: Tensor, values: Tensor, metadata: Tensor, backend: str) -> Tensor:
    return grad_y.new_empty((*grad_y.shape[:-1], 2 * values.shape[1]))


def _grad_input_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_y, values, metadata, ctx.backend = inputs
    ctx.save_for_backward(grad_y, values, metadata)


def _grad_input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, values, metadata = ctx.saved_tensors
    grad_grad_y = grad_values = None
    if ctx.needs_input_grad[0]:
        grad_grad_y = _linear(grad, values, None, metadata, None, None, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_values = _grad_values(grad_y, grad, metadata, ctx.backend)
    return grad_grad_y, grad_values, None, None


def _grad_values_fake(grad_y: Tensor, x: Tensor, metadata: Tensor, backend: str) -> Tensor:
    return x.new_empty(grad_y.shape[-1], x.shape[-1] // 2)


def _grad_values_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_y, x, metadata, ctx.backend = inputs
    ctx.save_for_backward(grad_y, x, metadata)


def _grad_values_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, x, metadata = ctx.saved_tensors
    grad_grad_y = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad_y = _linear(x, grad, None, metadata, None, None, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_x = _grad_input(grad_y, grad, metadata, ctx.backend)
    return grad_grad_y, grad_x, None, None


_linear = Operator(
    "two_four_linear(Tensor x, Tensor values, Tensor? bias, Tensor metadata, Tensor? values_t, "
    "Tensor? metadata_t, str backend) -> Tensor",
    fake=_linear_fake,
    save=_linear_save,
    backward=_linear_backward,
    inputs=4,
    prefer=_preferred,
)
_grad_input = Operator(
    "two_four_linear_grad_input(Tensor grad_y, Tensor values, Tensor metadata, str backend) -> Tensor",
    fake=_grad_input_fake,
    save=_grad_input_save,
    backward=_grad_input_backward,
)
_grad_values = Operator(
    "two_four_linear_grad_values(Tensor grad_y, Tensor x, Tensor metadata, str backend) -> Tensor",
    fake=_grad_values_fake,
    save=_grad_values_save,
    backward=_grad_values_backward,
)


def _dense_fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _dense_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *packed, ctx.gradient, ctx.decay, ctx.backend = inputs
    ctx.save_for_backward(x, weight, *packed)


def _dense_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, values, metadata, *transposed = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        if torch.is_grad_enabled():
            grad_x = grad @ _differentiable_weight(ctx, weight, values, metadata)
        else:
            grad_x = _input_gradient(grad, values, metadata, *transposed, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_weight = _dense_gradient(ctx, grad, x, weight, values, metadata)
    if ctx.needs_input_grad[2]:
        grad_bias = _bias_gradient(grad)
    return grad_x, grad_weight, grad_bias, *(None,) * 7


def _differentiable_weight(ctx: Any, weight: Tensor, values: Tensor, metadata: Tensor) -> Tensor:
    """What a second derivative sees of the packed weight: all of `weight`, or what is kept of it."""
    if ctx.gradient == "masked":
        return _unpack(_gather(weight, metadata, ctx.backend), metadata, ctx.backend)
    return _unpack(values, metadata, ctx.backend) + (weight - weight.detach())


def _dense_gradient(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, values: Tensor, metadata: Tensor
) -> Tensor:
    if ctx.gradient == "masked":
        return _unpack(_grad_values(grad, x, metadata, ctx.backend), metadata, ctx.backend)
    total = grad.reshape(-1, weight.shape[0]).T @ x.reshape(-1, weight.shape[1])
    if ctx.decay == 0:
        return total
    pruned = weight - _unpack(values, metadata, ctx.backend)
    return total + ctx.decay * pruned


_dense = Operator(
    "two_four_linear_dense(Tensor x, Tensor weight, Tensor? bias, Tensor values, Tensor metadata, "
    "Tensor? values_t, Tensor? metadata_t, str gradient, float decay, str backend) -> Tensor",
    fake=_dense_fake,
    save=_dense_save,
    backward=_dense_backward,
    run=lambda x, weight, bias, values, metadata, values_t, metadata_t, gradient, decay, backend: _linear(
        x, values, bias, metadata, None, None, backend
    ),
)


def _check_product(name: str, tensor: Any, packed: TwoFour, dimension: int) -> None:
    check_rows(packed)
    check_tensor(name, tensor)
    size, what = packed.shape[dimension], ("rows", "columns")[dimension]
    if tensor.dim() == 0 or tensor.shape[-1] != size:
        raise ValueError(
            f"{name} must have shape (..., {size}), the last dimension being the weight's {what}, got "
            f"{tuple(tensor.shape)}"
        )
    if packed.device != tensor.device:
        raise ValueError(f"packed and {name} must be on one device, got {packed.device} and {tensor.device}")


def _check_dtype(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name} and {like_name} must have one dtype, got {tensor.dtype} and {like.dtype}")


def _check_bias(bias: Any, x: Tensor, rows: int) -> None:
    if bias is None:
        return
    check_tensor("bias", bias)
    _check_dtype("bias", bias, x, "x")
    if bias.shape != (rows,) or bias.device != x.device:
        raise ValueError(
            f"bias must have shape ({rows},) on {x.device}, got {tuple(bias.shape)} on {bias.device}"
        )


def _transposed(packed: TwoFour, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    if packed.transposed is None:
        return None, None
    return packed.transposed.values.to(dtype), packed.transposed.metadata


def two_four_linear(
    x: Tensor, packed: TwoFour, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    r"""``F.linear(x, unpack_two_four(packed), bias)`` without the dense weight.

    .. math:: y = x W^\top + b

    Parameters
    ----------
    x : Tensor
        ``(..., K)``, any strides; float32, bfloat16, and float64 on a CPU or float16 on a GPU.
    packed : TwoFour
        The weight ``(N, K)``, of x's dtype and on its device.
    bias : Tensor, optional
        ``(N,)``.
    backend : str, optional
        ``"cpp"``, ``"triton"``, ``"torch"`` (PyTorch's own 2:4 products, on sparse tensor cores) or
        ``"reference"``; by default the first that can run the inputs, ``"torch"`` for many samples of sizes
        that it takes, and never the reference.

    Returns
    -------
    Tensor
        ``(..., N)``. Sums are in float32 for 16-bit dtypes, and have the same bits for any number of threads.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above; under autocast, dtypes are made one first.
    BackendError
        When no backend, or not the named one, can run the inputs.

    Notes
    -----
    The gradient of ``packed.values`` has their shape. That of x reads ``packed.transposed`` where there is
    one, whose values must be the same.
    """
    _check_product("x", x, packed, 1)
    x, values, bias = autocast(x, packed.values, bias)
    _check_dtype("packed.values", values, x, "x")
    _check_bias(bias, x, packed.shape[0])
    return _linear(x, values, bias, packed.metadata, *_transposed(packed, x.dtype), backend_name(backend))


def two_four_linear_dense(
    x: Tensor,
    weight: Tensor,
    packed: TwoFour,
    bias: Tensor | None = None,
    *,
    gradient: str = "straight_through",
    decay: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    r"""`two_four_linear`, differentiated with respect to the dense weight that was packed.

    .. math::
        y = x \tilde W^\top + b, \qquad
        \frac{\partial L}{\partial W} := \frac{\partial L}{\partial \tilde W} + \lambda (1 - M) \odot W

    with :math:`\tilde W = M \odot W` the packed weight and :math:`\partial L / \partial \tilde W =
    (\partial L / \partial y)^\top x` at all positions ("straight_through"), or at those of M only ("masked").

    Parameters
    ----------
    x, bias, backend :
        As in `two_four_linear`.
    weight : Tensor
        ``(N, K)``: only its gradient is of interest, and its pruned part where `decay` is not 0.
    packed : TwoFour
        `weight`, packed.
    gradient : str
        ``"straight_through"`` or ``"masked"``.
    decay : float
        :math:`\lambda` of SR-STE, at least 0; for ``"straight_through"``. It is added once for each backward
        pass, so divide it by the number of passes that a step accumulates, and multiply it by a loss scale.

    Returns
    -------
    Tensor
        ``(..., N)``.

    Raises
    ------
    TypeError, ValueError, BackendError
        As in `two_four_linear`.

    Notes
    -----
    Zhou et al., *Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch*, ICLR 2021, Eq. 9.
    """
    _check_product("x", x, packed, 1)
    check_tensor("weight", weight)
    if tuple(weight.shape) != packed.shape or weight.device != packed.device:
        raise ValueError(
            f"weight must have packed's shape {packed.shape} on {packed.device}, got {tuple(weight.shape)} "
            f"on {weight.device}"
        )
    check_choice(gradient, GRADIENTS, "gradient")
    if not is_number(decay) or not 0 <= decay < float("inf"):
        raise ValueError(f"decay must be a finite number of at least 0, got {describe(decay)}")
    if decay and gradient != "straight_through":
        raise ValueError(f"decay must be 0 unless gradient is 'straight_through', got {decay}")
    x, weight, values, bias = autocast(x, weight, packed.values, bias)
    _check_dtype("weight", weight, x, "x")
    _check_dtype("packed.values", values, x, "x")
    _check_bias(bias, x, packed.shape[0])
    transposed = _transposed(packed, x.dtype)
    how = (gradient, float(decay), backend_name(backend))
    return _dense(x, weight, bias, values.detach(), packed.metadata, *transposed, *how)


def two_four_linear_grad_input(grad_y: Tensor, packed: TwoFour, *, backend: str | None = None) -> Tensor:
    r"""``grad_y @ unpack_two_four(packed)``: the gradient of `two_four_linear` with respect to x.

    Parameters
    ----------
    grad_y : Tensor
        ``(..., N)``.
    packed, backend :
        As in `two_four_linear`; the transpose is not read.

    Returns
    -------
    Tensor
        ``(..., K)``.

    Raises
    ------
    TypeError, ValueError, BackendError
        As in `two_four_linear`.
    """
    _check_product("grad_y", grad_y, packed, 0)
    _check_dtype("packed.values", packed.values, grad_y, "grad_y")
    return _grad_input(grad_y, packed.values, packed.metadata, backend_name(backend))


def two_four_linear_grad_values(
    grad_y: Tensor, x: Tensor, packed: TwoFour, *, backend: str | None = None
) -> Tensor:
    r"""``gather_two_four(grad_y.T @ x, packed)``: the gradient of `two_four_linear`'s values, ``(N, K / 2)``.

    Parameters
    ----------
    grad_y : Tensor
        ``(..., N)``.
    x : Tensor
        ``(..., K)``, with the same leading dimensions.
    packed, backend :
        As in `two_four_linear`; only the positions are used.

    Raises
    ------
    TypeError, ValueError, BackendError
        As in `two_four_linear`.
    """
    _check_product("x", x, packed, 1)
    _check_product("grad_y", grad_y, packed, 0)
    if grad_y.shape[:-1] != x.shape[:-1] or grad_y.dtype != x.dtype:
        raise ValueError(
            f"grad_y must match x but in its last dimension, got {tuple(grad_y.shape)} {grad_y.dtype} and "
            f"{tuple(x.shape)} {x.dtype}"
        )
    return _grad_values(grad_y, x, packed.metadata, backend_name(backend))
