"""Patterns of which every tile is active as a whole or not at all: block sparsity."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.formats.layout import HEADER_WORDS, Layout, tile_coordinates, tile_extents
from sparsekern.formats.pattern import Pattern

__all__ = ["pattern_of_tiles", "whole_tiles"]


def whole_tiles(pattern: Pattern) -> Tensor | None:
    """The tiles of the grid that are active wherever they lie inside the matrix.

    Returns
    -------
    Tensor or None
        bool ``(tile_rows, tile_cols)`` on the CPU; None where a tile is active in part.
    """
    layout, host = pattern._layout, pattern.to("cpu")
    tile_row, tile_col = tile_coordinates(host.data, layout)
    heights, widths = tile_extents(tile_row, tile_col, layout)
    counts = host.tile_start.diff()
    active = counts > 0
    if not torch.equal(counts, active * heights * widths):
        return None
    grid = torch.zeros(layout.tile_rows, layout.tile_cols, dtype=torch.bool, device="cpu")
    grid[tile_row, tile_col] = active
    return grid


def pattern_of_tiles(tiles: Tensor, like: Pattern) -> Pattern:
    """The pattern with exactly some tiles active, each wherever it lies inside the matrix.

    Parameters
    ----------
    tiles : Tensor
        bool ``(tile_rows, tile_cols)``, on the CPU.
    like : Pattern
        Gives shape, tile size and device.

    Returns
    -------
    Pattern
        Only the active tiles are stored.
    """
    tile_row, tile_col = tiles.nonzero(as_tuple=True)
    heights, widths = tile_extents(tile_row, tile_col, like._layout)
    starts = torch.nn.functional.pad((heights * widths).cumsum(0), (1, 0))
    layout = like._layout.with_tiles(len(tile_row), int(starts[-1]))
    data = torch.zeros(layout.words, dtype=torch.int32, device="cpu")
    data[:HEADER_WORDS] = like.to("cpu").data[:HEADER_WORDS]
    pattern = Pattern._from_valid(data, layout)
    data[6] = layout.tiles
    data[8:10] = torch.tensor([layout.nnz], dtype=torch.int64, device="cpu").view(torch.int32)
    pattern.tile_start.copy_(starts)
    pattern.tile_row_ptr[1:] = tiles.sum(1).cumsum(0)
    pattern.tile_col.copy_(tile_col)
    pattern.tile_ptr_t[1:] = tiles.sum(0).cumsum(0)
    pattern.tile_order_t.copy_(tile_col.sort(stable=True).indices)
    # Four kinds of tile: cut off by the last row or not, and by the last column or not.
    kinds = (tile_row == layout.tile_rows - 1).long(), (tile_col == layout.tile_cols - 1).long()
    offsets, octets = _tile_kinds(layout)
    pattern.row_offset.copy_(offsets[kinds])
    pattern.bits.view(torch.uint8).copy_(octets[kinds])
    return pattern.to(like.device)


def _tile_kinds(layout: Layout) -> tuple[Tensor, Tensor]:
    """Row offsets ``(2, 2, T)`` and bits ``(2, 2, T, T / 8)`` of full tiles, by last row and last column."""
    t = layout.tile_size
    index = torch.arange(t, device="cpu")
    height = layout.rows - (layout.tile_rows - 1) * t
    width = layout.cols - (layout.tile_cols - 1) * t
    heights = torch.tensor([t, height], device="cpu").view(2, 1, 1)
    widths = torch.tensor([t, width], device="cpu").view(1, 2, 1)
    offsets = index.minimum(heights) * widths
    ones = (widths - 8 * index[: t // 8]).clamp(0, 8)
    octets = torch.where((index < heights).unsqueeze(-1), ((1 << ones) - 1).unsqueeze(2), 0)
    return offsets.to(torch.int16), octets.to(torch.uint8)
