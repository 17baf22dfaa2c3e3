"""The dense weight with its 2:4 mask applied, differentiated as if it were not."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsekern.backends import AUTOMATIC
from sparsekern.formats.two_four import TwoFour
from sparsekern.ops.operator import Operator
from sparsekern.ops.two_four_values import _unpack

__all__ = ["straight_through"]


def _masked_fake(weight: Tensor, values: Tensor, metadata: Tensor, decay: float, backend: str) -> Tensor:
    return weight.new_empty(weight.shape)


def _masked_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, values, metadata, ctx.decay, ctx.backend = inputs
    if ctx.decay:
        ctx.save_for_backward(weight, values, metadata)


def _masked_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.decay:
        weight, values, metadata = ctx.saved_tensors
        grad = grad + ctx.decay * (weight - _unpack(values, metadata, ctx.backend))
    return grad, None, None, None, None


_masked = Operator(
    "two_four_masked(Tensor weight, Tensor values, Tensor metadata, float decay, str backend) -> Tensor",
    fake=_masked_fake,
    save=_masked_save,
    backward=_masked_backward,
    run=lambda weight, values, metadata, decay, backend: _unpack(values, metadata, backend),
)


def straight_through(weight: Tensor, packed: TwoFour, decay: float) -> Tensor:
    r"""``unpack_two_four(packed)``, of which `weight` has the gradient.

    .. math::
        \tilde W = M \odot W, \qquad
        \frac{\partial L}{\partial W} := \frac{\partial L}{\partial \tilde W} + \lambda (1 - M) \odot W

    For products that have no 2:4 kernel; `two_four_linear_dense` is the same in one op.

    Parameters
    ----------
    weight : Tensor
        ``(N, K)``.
    packed : TwoFour
        `weight`, packed; of its dtype.
    decay : float
        :math:`\lambda`, at least 0; added once for each backward pass.
    """
    return _masked(weight, packed.values.detach(), packed.metadata, decay, AUTOMATIC)
