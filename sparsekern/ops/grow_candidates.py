r"""``grow_candidates``: where the dense gradient of a sparse weight is largest, found without storing it.

A method that moves a pattern (RigL; Evci et al., *Rigging the Lottery*, 2020, Section 3) grows it where the
gradient of the dense weight is largest in magnitude. The ops have no gradient of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern.formats.checks import check_integer
from sparsekern.formats.pattern import Pattern
from sparsekern.geometry import Sizes, conv2d_geometry
from sparsekern.ops.arguments import backend_name
from sparsekern.ops.conv2d import check_conv2d_gradient
from sparsekern.ops.linear import check_linear_gradient
from sparsekern.ops.operator import Operator

__all__ = ["grow_candidates", "grow_candidates_conv2d"]


def _empty(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    positions = x.new_empty((count,), dtype=torch.int64)
    return positions, x.new_empty((count,), dtype=torch.promote_types(x.dtype, torch.float32))


def _linear_fake(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, count: int, backend: str
) -> tuple[Tensor, Tensor]:
    return _empty(x, count)


def _conv2d_fake(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, count: int, geometry: Sizes, backend: str
) -> tuple[Tensor, Tensor]:
    return _empty(x, count)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.arguments = len(inputs)
    ctx.mark_non_differentiable(*output)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
    return (None,) * ctx.arguments


_grow_candidates = Operator(
    "grow_candidates(Tensor grad_y, Tensor x, Tensor pattern, SymInt[] shape, SymInt count, str backend) "
    "-> (Tensor, Tensor)",
    fake=_linear_fake,
    save=_save,
    backward=_backward,
)
_grow_candidates_conv2d = Operator(
    "grow_candidates_conv2d(Tensor grad_y, Tensor x, Tensor pattern, SymInt[] shape, SymInt count, "
    "SymInt[] geometry, str backend) -> (Tensor, Tensor)",
    fake=_conv2d_fake,
    save=_save,
    backward=_backward,
)


def _available(count: int, pattern: Pattern) -> int:
    rows, columns = pattern.matrix_shape
    return min(check_integer(count, "count", 0), rows * columns - pattern.nnz)


def grow_candidates(
    grad_y: Tensor, x: Tensor, pattern: Pattern, count: int, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    r"""The `count` inactive positions (n, k) with the largest gradient of the dense weight, in magnitude.

    .. math:: g_{nk} = \Big| \sum_m \frac{\partial L}{\partial y_{mn}} \, x_{mk} \Big|

    The selection is exact: of equal gradients the lowest position comes first, and NaN is the largest. Memory
    is of the order of `count`, not of the dense weight; the gradient is computed twice, or more often where
    many positions have nearly one magnitude. It has the same bits each time and for any number of threads.

    Parameters
    ----------
    grad_y : Tensor
        ``(..., N)``.
    x : Tensor
        ``(..., K)``, with the same leading dimensions.
    pattern : Pattern
        Of shape ``(N, K)``, on x's device.
    count : int
        At least 0; where fewer positions are inactive, all of them are taken.
    backend : str, optional
        As in `linear`. On a GPU the call waits for the device.

    Returns
    -------
    positions : Tensor
        int64 ``(c,)``, ``c = min(count, N * K - nnz)``: ``n * K + k``, ascending.
    scores : Tensor
        ``(c,)``: the gradients' magnitudes, float32, or float64 for float64 inputs. Neither has a gradient.

    Raises
    ------
    TypeError, ValueError, BackendError
        As in `linear_grad_values`, and when `count` is not such a number.
    """
    check_linear_gradient(grad_y, x, pattern)
    count = _available(count, pattern)
    return _grow_candidates(grad_y, x, pattern.data, pattern.shape, count, backend_name(backend))


def grow_candidates_conv2d(
    grad_y: Tensor,
    x: Tensor,
    pattern: Pattern,
    count: int,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`grow_candidates` for the weight of a convolution: where ``torch.nn.grad.conv2d_weight`` is largest.

    Parameters
    ----------
    grad_y : Tensor
        Of the output's shape.
    x, pattern, stride, padding, dilation, groups, backend :
        As in `conv2d`.
    count : int
        As in `grow_candidates`.

    Returns
    -------
    positions, scores : Tensor
        As in `grow_candidates`; positions are those of the weight's matrix, whose columns are in (kernel
        height, kernel width, input channel) order: ``n * K + (i * kw + j) * cin + c``.

    Raises
    ------
    TypeError, ValueError, BackendError
        As in `conv2d_grad_values`, and when `count` is not such a number.
    """
    geometry = conv2d_geometry(stride, padding, dilation, groups)
    check_conv2d_gradient(grad_y, x, pattern, geometry)
    count = _available(count, pattern)
    return _grow_candidates_conv2d(
        grad_y, x, pattern.data, pattern.shape, count, geometry, backend_name(backend)
    )
