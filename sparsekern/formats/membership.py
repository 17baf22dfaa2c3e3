"""Which positions of a weight matrix are active, looked up in the packed pattern one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.formats.layout import Layout, tile_coordinates

__all__ = ["are_active"]


def are_active(data: Tensor, layout: Layout, positions: Tensor) -> Tensor:
    """Whether each position of the weight matrix is active, by tensor operations on `data`'s device.

    Parameters
    ----------
    data : Tensor
        int32, the packed pattern.
    layout : Layout
        What its header says.
    positions : Tensor
        int64, of any shape, each ``n * K + k`` of a position inside the matrix.

    Returns
    -------
    Tensor
        bool, of the same shape.
    """
    t = layout.tile_size
    rows, cols = positions // layout.cols, positions % layout.cols
    tile_keys = rows // t * layout.tile_cols + cols // t
    if layout.tiles == 0:
        return torch.zeros_like(positions, dtype=torch.bool)
    if layout.tiles == layout.tile_rows * layout.tile_cols:
        tiles, stored = tile_keys, True
    else:
        tile_row, tile_col = tile_coordinates(data, layout)
        stored_keys = tile_row * layout.tile_cols + tile_col
        tiles = torch.searchsorted(stored_keys, tile_keys).clamp_(max=layout.tiles - 1)
        stored = stored_keys[tiles] == tile_keys
    # Bits are little endian: bit c of a row is bit c % 8 of its byte c // 8, whatever the word's size.
    octets = layout.section(data, layout.bits, layout.tiles * t * t // 8, torch.uint8)
    octet = octets[(tiles * t + rows % t) * (t // 8) + cols % t // 8]
    return ((octet >> (cols % 8).to(torch.uint8)) & 1).bool() & stored
