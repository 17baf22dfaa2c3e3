"""Where a packed pattern keeps what: its header, its sections, and the size of its tiles.

The same layout is in ``csrc/include/sparsekern/pattern.h``; the tests hold the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern.formats.checks import describe, is_integer

__all__ = [
    "BLOCK_SIZES",
    "TILE_SIZES",
    "Layout",
    "check_block_size",
    "check_tile_size",
    "default_tile_size",
    "tile_coordinates",
    "tile_extents",
    "value_positions",
]

TILE_SIZES = (64, 32, 16, 8)
BLOCK_SIZES = (32, 64, 128)
HEADER_WORDS = 16


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _align(words: int) -> int:
    return _ceil_div(words, 4) * 4


def default_tile_size(rows: int, cols: int) -> int:
    """Largest tile size that pads the matrix by at most a quarter.

    ``max {T in (64, 32, 16, 8): ceil(rows / T) * T * ceil(cols / T) * T <= 1.25 * rows * cols}``, and where
    no T meets that, the one that pads least. Large tiles decode faster and need less index; but the bits of a
    tile are stored whole, so LeNet-5's first layer (6 x 25) gets 8 rather than 64.

    Parameters
    ----------
    rows, cols : int
        Shape of the weight matrix.

    Returns
    -------
    int
        64, 32, 16 or 8.
    """

    def padded(tile_size: int) -> int:
        return _ceil_div(rows, tile_size) * _ceil_div(cols, tile_size) * tile_size**2

    for tile_size in TILE_SIZES:
        if 4 * padded(tile_size) <= 5 * rows * cols:
            return tile_size
    return min(TILE_SIZES, key=padded)


def check_tile_size(tile_size: int) -> int:
    """Return `tile_size` as an int when it is 8, 16, 32 or 64; ValueError or TypeError otherwise."""
    return _check_size(tile_size, TILE_SIZES, "tile_size must be 8, 16, 32 or 64")


def check_block_size(block_size: int) -> int:
    """Return `block_size` as an int when it is 32, 64 or 128; ValueError or TypeError otherwise."""
    return _check_size(block_size, BLOCK_SIZES, "block_size must be 32, 64 or 128")


def _check_size(size: int, sizes: Sequence[int], rule: str) -> int:
    if not is_integer(size):
        raise TypeError(f"{rule}, got {describe(size)}")
    if size not in sizes:
        raise ValueError(f"{rule}, got {size}")
    return int(size)


@dataclass(frozen=True)
class Layout:
    """The sizes a header states, the first word of every section, and the words of it all."""

    shape: tuple[int, ...]
    rows: int
    cols: int
    tile_size: int
    tile_rows: int
    tile_cols: int
    tiles: int
    nnz: int
    tile_start: int
    tile_row_ptr: int
    tile_col: int
    tile_ptr_t: int
    tile_order_t: int
    row_offset: int
    bits: int
    words: int

    @classmethod
    def from_header(cls, header: Sequence[int]) -> Layout:
        """Read the 16 header words of a pattern that has been validated."""
        tile_size, rows, cols, _, _, tiles = header[1:7]
        nnz = (header[8] & 0xFFFFFFFF) | header[9] << 32
        dims, cin, kh, kw = header[10:14]
        shape = (rows, cols) if dims == 2 else (rows, cin, kh, kw)
        return cls._of_sizes(shape, tile_size, tiles, nnz)

    @classmethod
    def complete(cls, shape: Sequence[int], tile_size: int, nnz: int) -> Layout:
        """The layout of a pattern that stores every tile of its grid: known without its bits."""
        rows, cols = shape[0], math.prod(shape[1:])
        return cls._of_sizes(
            tuple(shape), tile_size, _ceil_div(rows, tile_size) * _ceil_div(cols, tile_size), nnz
        )

    def with_tiles(self, tiles: int, nnz: int) -> Layout:
        """The layout of a pattern with the same shape and tile size that stores other tiles."""
        return self._of_sizes(self.shape, self.tile_size, tiles, nnz)

    @classmethod
    def _of_sizes(cls, shape: tuple[int, ...], tile_size: int, tiles: int, nnz: int) -> Layout:
        rows, cols = shape[0], math.prod(shape[1:])
        tile_rows, tile_cols = _ceil_div(rows, tile_size), _ceil_div(cols, tile_size)
        tile_start = HEADER_WORDS
        tile_row_ptr = tile_start + _align(2 * (tiles + 1))
        tile_col = tile_row_ptr + _align(tile_rows + 1)
        tile_ptr_t = tile_col + _align(tiles)
        tile_order_t = tile_ptr_t + _align(tile_cols + 1)
        row_offset = tile_order_t + _align(tiles)
        bits = row_offset + _align(tiles * tile_size // 2)
        return cls(
            shape=shape,
            rows=rows,
            cols=cols,
            tile_size=tile_size,
            tile_rows=tile_rows,
            tile_cols=tile_cols,
            tiles=tiles,
            nnz=nnz,
            tile_start=tile_start,
            tile_row_ptr=tile_row_ptr,
            tile_col=tile_col,
            tile_ptr_t=tile_ptr_t,
            tile_order_t=tile_order_t,
            row_offset=row_offset,
            bits=bits,
            words=bits + _align(tiles * tile_size * tile_size // 32),
        )

    def section(self, data: Tensor, first_word: int, count: int, dtype: torch.dtype) -> Tensor:
        """View of `count` elements of type `dtype` that begin at word `first_word` of `data`."""
        words = count * dtype.itemsize // 4
        return data[first_word : first_word + words].view(dtype)


def tile_coordinates(data: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Tile row and tile column of every stored tile: int64, each ``(tiles,)``, on the device of `data`."""
    row_ptr = layout.section(data, layout.tile_row_ptr, layout.tile_rows + 1, torch.int32).long()
    tile_row = torch.repeat_interleave(row_ptr.diff(), output_size=layout.tiles)
    return tile_row, layout.section(data, layout.tile_col, layout.tiles, torch.int32).long()


def tile_extents(tile_row: Tensor, tile_col: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Rows and columns of the matrix that lie in each of some tiles: the tile size, less at the edges."""
    size = layout.tile_size
    heights = (layout.rows - tile_row * size).clamp(max=size)
    return heights, (layout.cols - tile_col * size).clamp(max=size)


def value_positions(data: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Matrix row and column of every value, by tensor operations on whichever device `data` is.

    Expands each stored bit to a byte. CPU patterns have native code instead.

    Parameters
    ----------
    data : Tensor
        int32, the packed pattern.
    layout : Layout
        What its header says.

    Returns
    -------
    rows, cols : Tensor
        int64, each ``(nnz,)``, in the order of the values.
    """
    t = layout.tile_size
    bytes_ = layout.section(data, layout.bits, layout.tiles * t * t // 8, torch.uint8)
    shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
    active = ((bytes_.unsqueeze(1) >> shifts) & 1).view(layout.tiles, t, t)
    tile, row, col = active.nonzero(as_tuple=True)
    tile_row, tile_col = tile_coordinates(data, layout)
    return tile_row[tile] * t + row, tile_col[tile] * t + col
