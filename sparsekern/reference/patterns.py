"""The ops on patterns, each as one dense PyTorch expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from sparsekern.formats.pattern import Pattern
from sparsekern.geometry import Sizes


def _dense(values: Tensor, pattern: Pattern) -> Tensor:
    return pattern.unpack(values if values.dim() == 1 else pattern.pack(values))


def _as_values(dense: Tensor, pattern: Pattern, values_shape: Sizes) -> Tensor:
    values = pattern.pack(dense)
    return values if len(values_shape) == 1 else pattern.unpack(values)


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: Sizes) -> Tensor:
    return F.linear(x, _dense(values, Pattern(pattern)), bias)


def linear_grad_input(grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sizes) -> Tensor:
    return grad_y @ _dense(values, Pattern(pattern))


def linear_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, values_shape: Sizes
) -> Tensor:
    dense = grad_y.reshape(-1, shape[0]).T @ x.reshape(-1, shape[1])
    return _as_values(dense, Pattern(pattern), values_shape)


def grow_candidates(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, count: int
) -> tuple[Tensor, Tensor]:
    grad_y, x = _widened(grad_y, x)
    return _largest_inactive(grad_y.reshape(-1, shape[0]).T @ x.reshape(-1, shape[1]), pattern, count)


def _widened(*tensors: Tensor) -> list[Tensor]:
    """In the dtype that sums are held in."""
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]


def _largest_inactive(gradient: Tensor, pattern: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`gradient` has the shape of the weight; its positions are those of the weight's matrix."""
    active = Pattern(pattern).to_mask()
    if gradient.dim() == 4:
        active, gradient = active.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    inactive = active.flatten().logical_not().nonzero().squeeze(1)
    if count > len(inactive):
        raise ValueError(f"count must be at most the {len(inactive)} inactive positions, got {count}")
    scores = gradient.abs().flatten()[inactive]
    chosen = scores.sort(descending=True, stable=True).indices[:count].sort().values
    return inactive[chosen], scores[chosen]


def _strides(geometry: Sizes) -> dict[str, Any]:
    return {
        "stride": geometry[0:2],
        "padding": geometry[2:4],
        "dilation": geometry[4:6],
        "groups": geometry[6],
    }


def conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: Sizes, geometry: Sizes
) -> Tensor:
    return F.conv2d(x, _dense(values, Pattern(pattern)), bias, **_strides(geometry))


def conv2d_grad_input(
    grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sizes, input_size: Sizes, geometry: Sizes
) -> Tensor:
    return conv2d_input(input_size, _dense(values, Pattern(pattern)), grad_y, **_strides(geometry))


def conv2d_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, values_shape: Sizes, geometry: Sizes
) -> Tensor:
    dense = conv2d_weight(x, shape, grad_y, **_strides(geometry))
    return _as_values(dense, Pattern(pattern), values_shape)


def grow_candidates_conv2d(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, count: int, geometry: Sizes
) -> tuple[Tensor, Tensor]:
    grad_y, x = _widened(grad_y, x)
    return _largest_inactive(conv2d_weight(x, shape, grad_y, **_strides(geometry)), pattern, count)


def pack(dense: Tensor, pattern: Tensor, nnz: int) -> Tensor:
    return Pattern(pattern).pack(dense)


def unpack(values: Tensor, pattern: Tensor, shape: Sizes) -> Tensor:
    return Pattern(pattern).unpack(values)


def transfer(values: Tensor, source: Tensor, target: Tensor, nnz: int) -> Tensor:
    return Pattern(target).pack(Pattern(source).unpack(values))


def transfer_all(vectors: list[Tensor], source: Tensor, target: Tensor, nnz: int) -> list[Tensor]:
    return [transfer(vector, source, target, nnz) for vector in vectors]


def update_topology(
    values: list[Tensor],
    patterns: list[Tensor],
    scores: list[Tensor],
    active: list[Tensor | None],
    positions: list[Tensor | None],
    counts: Sequence[int],
    words: Sequence[int],
    by: str,
) -> list[Tensor]:
    layers = zip(values, map(Pattern, patterns), scores, active, positions, counts)
    return [_update_layer(*layer, by) for layer in layers]


def _update_layer(
    values: Tensor,
    pattern: Pattern,
    scores: Tensor,
    active: Tensor | None,
    positions: Tensor | None,
    count: int,
    by: str,
) -> Tensor:
    mask = _as_matrix(pattern.to_mask(), pattern).flatten()
    weight = _as_matrix(pattern.unpack(values), pattern).flatten()
    if positions is None:
        scores, may_grow = _as_matrix(scores, pattern).flatten(), torch.ones_like(mask)
    else:
        others = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device)
        scores = others.index_put((positions,), scores)
        scores = torch.where(mask, _as_matrix(pattern.unpack(active), pattern).flatten(), scores)
        may_grow = mask.index_fill(0, positions, True)
    # Stable sorts of positions in their order: ties go to the first. NaN is the largest to both.
    alive = mask.nonzero()[:, 0]
    dropped = alive[torch.sort(weight[alive].abs(), stable=True).indices[:count]]
    kept = mask.index_fill(0, dropped, False)
    free = (~kept & may_grow).nonzero()[:, 0]
    keys = scores[free].abs() if by == "magnitude" else scores[free]
    grown = free[torch.sort(keys, descending=True, stable=True).indices[:count]]
    mask = _from_matrix(kept.index_fill(0, grown, True).view(pattern.matrix_shape), pattern)
    return Pattern.from_mask(mask, tile_size=pattern.tile_size, complete=True).data


def _as_matrix(dense: Tensor, pattern: Pattern) -> Tensor:
    return dense if dense.dim() == 2 else dense.permute(0, 2, 3, 1).reshape(pattern.matrix_shape)


def _from_matrix(matrix: Tensor, pattern: Pattern) -> Tensor:
    if len(pattern.shape) == 2:
        return matrix
    rows, cin, kh, kw = pattern.shape
    return matrix.view(rows, kh, kw, cin).permute(0, 3, 1, 2)
