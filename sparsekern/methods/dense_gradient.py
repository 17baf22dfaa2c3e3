"""The gradient of a weight at all positions, from the factors of its contributions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from sparsekern import ops
from sparsekern.backends import BackendError, select
from sparsekern.formats.pattern import Pattern
from sparsekern.ops.observers import WeightGradient

__all__ = ["dense_gradient", "is_small", "joined", "largest_inactive"]


def joined(gradients: Sequence[WeightGradient]) -> WeightGradient | None:
    """One contribution that is the sum of all: of the samples one after another. None where images differ in
    size or convolutions in geometry."""
    first = gradients[0]
    if len(gradients) == 1:
        return first
    at_active = torch.stack([g.at_active for g in gradients]).sum(0)
    if first.geometry is None:
        grad_y, x = (torch.cat([_rows(t) for t in part]) for part in _factors(gradients))
        return WeightGradient(grad_y, x, at_active, None)
    same = {(tuple(g.geometry), g.x.shape[1:], g.grad_y.shape[1:]) for g in gradients}
    if len(same) > 1:
        return None
    grad_y, x = (torch.cat(part) for part in _factors(gradients))
    return WeightGradient(grad_y, x, at_active, first.geometry)


def _factors(gradients: Sequence[WeightGradient]) -> tuple[list[Tensor], list[Tensor]]:
    return [g.grad_y for g in gradients], [g.x for g in gradients]


def _rows(tensor: Tensor) -> Tensor:
    """Samples by features; a single vector is one sample."""
    return tensor.reshape(-1, tensor.shape[-1])


def is_small(gradient: WeightGradient, pattern: Pattern) -> bool:
    """Whether the dense gradient takes no more memory than the factors, which the backward pass holds anyway:
    then it is the faster way to its largest elements."""
    return pattern.numel <= gradient.x.numel() + gradient.grad_y.numel()


def largest_inactive(gradient: WeightGradient, pattern: Pattern, count: int) -> tuple[Tensor, Tensor]:
    """`grow_candidates` of a contribution: no dense gradient is stored, unless no kernel can do without."""
    grad_y, x, _, geometry = gradient
    if geometry is None:
        grad_y, x = _rows(grad_y), _rows(x)
        return ops.grow_candidates(grad_y, x, pattern, count, backend=_backend("grow_candidates", x))
    stride, padding, dilation = (tuple(geometry[i : i + 2]) for i in (0, 2, 4))
    return ops.grow_candidates_conv2d(
        grad_y,
        x,
        pattern,
        count,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=geometry[6],
        backend=_backend("grow_candidates_conv2d", x),
    )


def _backend(op: str, x: Tensor) -> str | None:
    """None, or ``"reference"``, which stores this one layer's dense gradient, where no kernel runs the op."""
    try:
        select(op, x.dtype, x.device)
    except BackendError:
        return "reference"
    return None


def dense_gradient(gradients: Sequence[WeightGradient], pattern: Pattern, dtype: torch.dtype) -> Tensor:
    """The sum of all contributions, of the weight's shape; zeros where there is none.

    Parameters
    ----------
    gradients : sequence of WeightGradient
    pattern : Pattern
        Of the weight.
    dtype : torch.dtype
        Of the weight: the sum is float64 for float64 and float32 for all others.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    total = torch.zeros(pattern.shape, dtype=dtype, device=pattern.device)
    for grad_y, x, _, geometry in gradients:
        grad_y, x = grad_y.to(dtype), x.to(dtype)
        if geometry is None:
            total.addmm_(_rows(grad_y).T, _rows(x))
        else:
            stride, padding, dilation = (tuple(geometry[i : i + 2]) for i in (0, 2, 4))
            total += conv2d_weight(x, pattern.shape, grad_y, stride, padding, dilation, geometry[6])
    return total
