"""2:4 masks by trying every one, and the packing that they make, put together one group at a time."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

PAIRS = list(itertools.combinations(range(4), 2))
# Four pairs of columns, one for each row, that keep two of each column; the earlier positions first.
MASKS = [
    pairs
    for pairs in itertools.product(PAIRS, repeat=4)
    if all(sum(column in pair for pair in pairs) == 2 for column in range(4))
]


def magnitudes(weight: torch.Tensor) -> np.ndarray:
    return weight.double().abs().numpy()


def transposable_mask(weight: torch.Tensor) -> torch.Tensor:
    """Every mask of every tile tried, the first of the best taken."""
    rows, columns = weight.shape
    tiles = magnitudes(weight).reshape(rows // 4, 4, columns // 4, 4).transpose(0, 2, 1, 3).reshape(-1, 4, 4)
    totals = []
    for pairs in MASKS:
        s = [tiles[:, row, first] + tiles[:, row, second] for row, (first, second) in enumerate(pairs)]
        totals.append((s[0] + s[1]) + (s[2] + s[3]))
    # The first of equal ones.
    best = np.argmax(np.stack(totals), axis=0)
    kept = np.zeros((len(MASKS), 4, 4), dtype=bool)
    for mask, (row, pair) in itertools.product(range(len(MASKS)), enumerate(range(4))):
        kept[mask, row, list(MASKS[mask][pair])] = True
    grid = kept[best].reshape(rows // 4, columns // 4, 4, 4).transpose(0, 2, 1, 3)
    return torch.from_numpy(grid.reshape(rows, columns).copy())


def row_mask(weight: torch.Tensor) -> torch.Tensor:
    groups = magnitudes(weight).reshape(-1, 4)
    order = np.argsort(-groups, axis=1, kind="stable")[:, :2]
    kept = np.zeros_like(groups, dtype=bool)
    np.put_along_axis(kept, order, True, axis=1)
    return torch.from_numpy(kept.reshape(weight.shape))


def in_rows(weight: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and metadata, put together one group at a time."""
    rows, columns = weight.shape
    places = mask.view(rows, columns // 4, 4).nonzero()[:, 2].view(rows, columns // 4, 2)
    nibbles = places[..., 0] | places[..., 1] << 2
    nibbles = torch.nn.functional.pad(nibbles, (0, (columns // 4) % 2))
    return weight[mask].view(rows, columns // 2), (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8)


def expected(weight, mask, layout) -> tuple[torch.Tensor, torch.Tensor]:
    if layout == "rows":
        return in_rows(weight, mask)
    # As torch.where puts it: what is not kept is 0.0, and a kept -0.0 stays.
    masked = torch.where(mask, weight, torch.zeros((), dtype=weight.dtype)).contiguous()
    return sparse_semi_structured_from_dense_cutlass(masked)
