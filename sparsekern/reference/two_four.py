"""The ops on 2:4 matrices, each as one dense PyTorch expression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.formats.two_four import GROUP, MASKS, PAIRS, columns_of, metadata_of


def pack_two_four(weights: list[Tensor], transposable: bool, transpose: bool) -> list[Tensor]:
    results = []
    for weight in weights:
        check_finite(weight)
        mask = _transposable_mask(weight) if transposable else _row_mask(weight)
        results += _packed(weight, mask)
        if transpose:
            results += _packed(weight.T, mask.T)
    return results


def check_finite(weight: Tensor) -> None:
    if weight.dtype.is_floating_point and not bool(weight.isfinite().all()):
        row, column = (~weight.isfinite()).nonzero()[0].tolist()
        value = float(weight[row, column])
        raise ValueError(f"weight: expected finite values, got {value} at row {row}, column {column}")


def _magnitudes(weight: Tensor) -> Tensor:
    return weight.double().abs()


def _row_mask(weight: Tensor) -> Tensor:
    groups = _magnitudes(weight).unflatten(1, (-1, GROUP))
    kept = groups.sort(descending=True, stable=True).indices[..., :2]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, kept, True).flatten(1)


def _transposable_mask(weight: Tensor) -> Tensor:
    rows, columns = weight.shape
    # (tile, row in it, column in it)
    tiles = _magnitudes(weight).view(rows // GROUP, GROUP, columns // GROUP, GROUP)
    tiles = tiles.transpose(1, 2).reshape(-1, GROUP, GROUP)
    first, second = torch.tensor(PAIRS, device=weight.device).T
    sums = tiles[..., first] + tiles[..., second]
    masks = torch.tensor(MASKS, device=weight.device)
    totals = (sums[:, 0, masks[:, 0]] + sums[:, 1, masks[:, 1]]) + (
        sums[:, 2, masks[:, 2]] + sums[:, 3, masks[:, 3]]
    )
    pairs = masks[totals.argmax(1)]  # the first of several
    kept = torch.tensor(PAIRS, device=weight.device)[pairs]
    mask = torch.zeros_like(tiles, dtype=torch.bool).scatter_(2, kept, True)
    return mask.view(rows // GROUP, columns // GROUP, GROUP, GROUP).transpose(1, 2).reshape(rows, columns)


def _packed(weight: Tensor, mask: Tensor) -> list[Tensor]:
    rows, columns = weight.shape
    kept = mask.nonzero()[:, 1].view(rows, columns // GROUP, 2)
    values = weight.gather(1, kept.flatten(1))
    return [values, metadata_of(kept % GROUP)]


def gather_two_four(dense: Tensor, metadata: Tensor) -> Tensor:
    groups = dense.unflatten(1, (-1, GROUP))
    return groups.gather(2, columns_of(metadata, dense.shape[1])).flatten(1)


def unpack_two_four(values: Tensor, metadata: Tensor) -> Tensor:
    rows, stored = values.shape
    groups = values.new_zeros(rows, stored // 2, GROUP)
    return groups.scatter(2, columns_of(metadata, 2 * stored), values.unflatten(1, (-1, 2))).flatten(1)


def two_four_linear(x: Tensor, values: Tensor, bias: Tensor | None, metadata: Tensor) -> Tensor:
    return F.linear(x, unpack_two_four(values, metadata), bias)


def two_four_linear_grad_input(grad_y: Tensor, values: Tensor, metadata: Tensor) -> Tensor:
    return grad_y @ unpack_two_four(values, metadata)


def two_four_linear_grad_values(grad_y: Tensor, x: Tensor, metadata: Tensor) -> Tensor:
    dense = grad_y.reshape(-1, grad_y.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return gather_two_four(dense, metadata)


def two_four_linear_int8(
    x: Tensor, values: Tensor, bias: Tensor | None, metadata: Tensor, scale: Tensor, x_scale: Tensor | None
) -> Tensor:
    x_float = x.float()
    if x_scale is None:
        step = x_float.abs().amax(-1, keepdim=True) / 127
        step = torch.where(step == 0, torch.ones_like(step), step)
    else:
        step = x_scale
    rounded = (x_float / step).round().clamp(-127, 127)
    # Sums of integers below 2^53, exact in float64.
    sums = F.linear(rounded.double(), unpack_two_four(values, metadata).double())
    y = sums.float() * (step * scale)
    return (y if bias is None else y + bias.float()).to(x.dtype)
