"""`TileIndex`: the sections of a packed pattern as tensors, and what a launch has to know beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern.formats.layout import Layout, tile_extents

__all__ = ["TileIndex"]


@dataclass(frozen=True)
class TileIndex:
    """Views of a packed pattern, on its device, and host-side facts.

    Attributes
    ----------
    layout : Layout
        Sizes, and where the sections are.
    tile_start, tile_row_ptr, tile_col, tile_ptr_t, tile_order_t, row_offset, bits : Tensor
        The sections, flat; see `Pattern`.
    tile_row : Tensor
        int32 ``(tiles,)``: tile row of each tile. `tile_col` stands in for it where the grid is complete,
        since there it follows from the tile's index.
    complete : bool
        Every tile of the grid is stored.
    full : bool
        Every stored tile is active wherever it lies inside the matrix: block sparsity, or no sparsity.
    paired : bool
        Tiles come in aligned groups of 2 x 2, cut off at the last row and column, stored whole or not at all.
    """

    layout: Layout
    tile_start: Tensor
    tile_row_ptr: Tensor
    tile_col: Tensor
    tile_ptr_t: Tensor
    tile_order_t: Tensor
    row_offset: Tensor
    bits: Tensor
    tile_row: Tensor
    complete: bool
    full: bool
    paired: bool

    @classmethod
    def build(cls, data: Tensor, layout: Layout, host_data: Tensor | None) -> TileIndex:
        """Index of the packed pattern `data`.

        Where the grid is complete nothing is read; elsewhere `host_data`, or else the device.
        """
        # Of another tensor on the same memory: views of `data` would keep it, and what is known of it, alive.
        sections = _sections(data.new_empty(0).set_(data), layout)
        if layout.tiles == layout.tile_rows * layout.tile_cols:
            full = layout.nnz == layout.rows * layout.cols
            return cls(
                layout, **sections, tile_row=sections["tile_col"], complete=True, full=full, paired=True
            )
        host = _sections(data.cpu() if host_data is None else host_data, layout)
        counts = host["tile_row_ptr"].diff().long()
        tile_row = torch.repeat_interleave(counts, output_size=layout.tiles)
        return cls(
            layout,
            **sections,
            tile_row=tile_row.int().to(data.device),
            complete=False,
            full=_is_full(host, tile_row, layout),
            paired=_is_paired(tile_row, host["tile_col"], layout),
        )


def _sections(data: Tensor, layout: Layout) -> dict[str, Tensor]:
    size, tiles = layout.tile_size, layout.tiles
    bits = {8: torch.uint8, 16: torch.int16}.get(size, torch.int32)
    return {
        "tile_start": layout.section(data, layout.tile_start, tiles + 1, torch.int64),
        "tile_row_ptr": layout.section(data, layout.tile_row_ptr, layout.tile_rows + 1, torch.int32),
        "tile_col": layout.section(data, layout.tile_col, tiles, torch.int32),
        "tile_ptr_t": layout.section(data, layout.tile_ptr_t, layout.tile_cols + 1, torch.int32),
        "tile_order_t": layout.section(data, layout.tile_order_t, tiles, torch.int32),
        "row_offset": layout.section(data, layout.row_offset, tiles * size, torch.int16),
        "bits": layout.section(data, layout.bits, tiles * size * max(1, size // 32), bits),
    }


def _is_full(host: dict[str, Tensor], tile_row: Tensor, layout: Layout) -> bool:
    heights, widths = tile_extents(tile_row, host["tile_col"].long(), layout)
    return torch.equal(host["tile_start"].diff(), heights * widths)


def _is_paired(tile_row: Tensor, tile_col: Tensor, layout: Layout) -> bool:
    """Whether each 2 x 2 group that has a tile has all those that lie inside the grid."""
    groups = (tile_row // 2) * ((layout.tile_cols + 1) // 2) + tile_col.long() // 2
    groups, counts = groups.unique(return_counts=True)
    row = groups // ((layout.tile_cols + 1) // 2) * 2
    col = groups % ((layout.tile_cols + 1) // 2) * 2
    expected = (layout.tile_rows - row).clamp(max=2) * (layout.tile_cols - col).clamp(max=2)
    return torch.equal(counts, expected)
