"""N:M masks: the N largest magnitudes of every M neighbours."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.formats.checks import check_choice, check_strided, describe, is_integer

__all__ = ["nm_mask", "nm_mask_", "parse_nm"]

MAX_GROUP = 64


def parse_nm(pattern: Any) -> tuple[int, int]:
    """N and M of a pattern such as "2:4": of every M neighbours, N are kept."""
    rule = f"pattern must be 'N:M' with 0 < N < M <= {MAX_GROUP}, such as '2:4'"
    if not isinstance(pattern, str):
        raise TypeError(f"{rule}, got {describe(pattern)}")
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    kept, group = map(int, found.groups()) if found else (0, 0)
    if not 0 < kept < group <= MAX_GROUP:
        raise ValueError(f"{rule}, got {pattern!r}")
    return kept, group


@torch.no_grad()
def nm_mask(weight: Tensor, pattern: str = "2:4", *, dim: int = 1, uneven: str = "refuse") -> Tensor:
    """The mask that keeps the N largest magnitudes of every M neighbours along a dimension.

    Parameters
    ----------
    weight : Tensor
        Floating-point, any shape and strides; finite.
    pattern : str
        ``"N:M"``: ``"2:4"``, ``"1:4"``, ``"4:8"``, ...; M at most 64.
    dim : int
        The dimension of the groups. The hardware multiplies along 1: the inputs of a linear layer, the input
        channels of a convolution (the neighbours in memory of a channels-last weight).
    uneven : str
        What becomes of a size that is no multiple of M: ``"refuse"``, or ``"pad"``: the last group is as if
        zeros followed, so that up to N of its elements are kept.

    Returns
    -------
    Tensor
        bool, of weight's shape, as `sparsify_` takes masks. Of equal magnitudes the first ones are kept.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above; names the nearest sizes where M divides none.
    """
    kept, group = parse_nm(pattern)
    check_choice(uneven, ("refuse", "pad"), "uneven")
    _check_weight(weight)
    if not is_integer(dim) or not -weight.dim() <= dim < weight.dim():
        raise ValueError(f"dim must be a dimension of weight, which has {weight.dim()}, got {describe(dim)}")
    size = weight.shape[dim]
    if size % group and uneven == "refuse":
        below = size // group * group
        near = f"{below} and {below + group}" if below else f"{group}"
        raise ValueError(
            f"weight must have a multiple of {group} elements along dim {dim} for {pattern}, got {size}; the "
            f"nearest: {near}; or pass uneven='pad'"
        )
    # -1 is less than any magnitude, so what is padded comes last.
    magnitudes = F.pad(weight.abs().movedim(dim, -1), (0, -size % group), value=-1.0)
    ranks = _ranks(magnitudes.unflatten(-1, (-1, group)))
    mask = (ranks < kept).flatten(-2)[..., :size].movedim(-1, dim)
    return mask.contiguous()


def _ranks(groups: Tensor) -> Tensor:
    """How many of its group come before each element: the larger ones, and equal ones at its left."""
    ranks = torch.zeros(groups.shape, dtype=torch.uint8, device=groups.device)
    for right in range(1, groups.shape[-1]):
        larger = groups[..., right, None] > groups[..., :right]
        ranks[..., :right] += larger
        ranks[..., right] += (~larger).sum(-1, dtype=torch.uint8)
    return ranks


def _check_weight(weight: Any) -> None:
    if not isinstance(weight, Tensor) or not weight.dtype.is_floating_point:
        raise TypeError(f"weight must be a floating-point tensor, got {describe(weight)}")
    check_strided(weight, "weight")
    if weight.dim() == 0:
        raise ValueError("weight must have a dimension, got a scalar")
    if not bool(weight.isfinite().all()):
        place = tuple((~weight.isfinite()).nonzero()[0].tolist())
        raise ValueError(f"weight must be finite, got {float(weight[place])} at {place}")


@torch.no_grad()
def nm_mask_(weight: Tensor, pattern: str = "2:4", *, dim: int = 1, uneven: str = "refuse") -> Tensor:
    """Sets all but the N largest magnitudes of every M neighbours to 0, in place, and returns the mask.

    Parameters
    ----------
    weight : Tensor
        As in `nm_mask`; written to.
    pattern, dim, uneven :
        As in `nm_mask`.

    Returns
    -------
    Tensor
        bool, of weight's shape: True where an element was kept.

    Raises
    ------
    TypeError, ValueError
        As in `nm_mask`; nothing is changed.
    """
    mask = nm_mask(weight, pattern, dim=dim, uneven=uneven)
    if any(stride == 0 and size > 1 for stride, size in zip(weight.stride(), weight.shape, strict=True)):
        raise ValueError(f"weight must have memory for each element, got an expanded one, {weight.stride()}")
    weight.masked_fill_(~mask, 0)
    return mask
