"""`pack` and `unpack` in Triton: values between a dense weight and a pattern, a tile in a program."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.configs import Config, padded
from sparsekern.kernels.launch import Constants, Launch, Sections, at_least_one
from sparsekern.kernels.tile_decode import (
    active_octets,
    decode_octets,
    dense_places,
    find_tile,
    load_octets,
    tile_row_of,
    value_places,
)

WHOLE_TILE = Config(samples=1, group=1, warps=4, stages=1)


@triton.jit
def tile_octets(pattern, tile, valid, C):
    """The octets of a whole tile, and the index of the first value of each."""
    row = tl.arange(0, C.ROWS)[:, None]
    octet = tl.arange(0, C.COLUMNS // 8)[None, :]
    valid = valid & (row < C.TILE) & (octet < C.TILE // 8)
    tile = tl.zeros((C.ROWS, 1), tl.int64) + tile
    return load_octets(pattern, tile, row, octet, valid, C.TILE)


@triton.jit
def unpack_kernel(values, dense, pattern, rows, columns, channels, positions, tile_cols, steps, C):
    """One program for one tile of `dense`, stored or not, so that each element is written once."""
    tile_row = tl.program_id(0) // tile_cols
    tile_col = tl.program_id(0) % tile_cols
    tile = find_tile(pattern, tile_row, tile_col, steps)
    octets, start = tile_octets(pattern, tl.maximum(tile, 0), tile >= 0, C)
    block = decode_octets(values, octets, start, C.ROWS, C.COLUMNS)
    row = tl.arange(0, C.ROWS)[:, None]
    column = tl.arange(0, C.COLUMNS)[None, :]
    inside = (row < C.TILE) & (column < C.TILE)
    row += tile_row * C.TILE
    column += tile_col * C.TILE
    place = dense_places(dense, row, column, columns, channels, positions)
    tl.store(place, block, mask=inside & (row < rows) & (column < columns))


@triton.jit
def pack_kernel(dense, values, pattern, rows, columns, channels, positions, tile_cols, C):
    """One program for one stored tile."""
    tile = tl.program_id(0)
    octets, start = tile_octets(pattern, tile, True, C)
    active = active_octets(octets, C.ROWS, C.COLUMNS)
    row = tile_row_of(pattern, tile, tile_cols, C) * C.TILE + tl.arange(0, C.ROWS)[:, None]
    column = tl.load(pattern.tile_col + tile) * C.TILE + tl.arange(0, C.COLUMNS)[None, :]
    place = dense_places(dense, row, column, columns, channels, positions)
    # The rest of the block is not stored. It has no default, for not every dtype is made from a number.
    block = tl.load(place, mask=active)
    tl.store(value_places(values, octets, start, C.ROWS, C.COLUMNS), block, mask=active)


def _constants(values: Tensor, index: Any) -> Constants:
    size = padded(index.layout.tile_size)
    return Constants.of(index, values, values.dtype, WHOLE_TILE)._replace(ROWS=size, COLUMNS=size)


def _shape(index: Any) -> tuple[int, int, int, int]:
    """Rows and columns of the matrix, channels and kernel positions of a column."""
    layout = index.layout
    channels = layout.shape[1]
    return layout.rows, layout.cols, channels, layout.cols // channels


def plan_unpack(values: Tensor, index: Any, dense: Tensor) -> Launch:
    """The launch of `unpack`."""
    layout = index.layout
    steps = layout.tile_cols.bit_length()
    arguments = (values, dense, Sections.of(index), *_shape(index), layout.tile_cols, steps)
    programs = layout.tile_rows * layout.tile_cols
    return Launch(unpack_kernel, programs, arguments, _constants(values, index), 4, 1)


def plan_pack(dense: Tensor, index: Any, values: Tensor) -> Launch:
    """The launch of `pack`."""
    arguments = (dense, values, Sections.of(index), *_shape(index), index.layout.tile_cols)
    return Launch(pack_kernel, index.layout.tiles, arguments, _constants(values, index), 4, 1)


def unpack(values: Tensor, index: Any) -> Tensor:
    """The dense weight, in its own shape: `values` at the active positions and 0 elsewhere.

    Parameters
    ----------
    values : Tensor
        ``(nnz,)``, contiguous; any floating-point dtype.
    index : TileIndex
        Of the pattern, on the same device.
    """
    dense = values.new_empty(index.layout.shape)
    plan_unpack(at_least_one(values), index, dense).run()
    return dense


def pack(dense: Tensor, index: Any) -> Tensor:
    """``dense[active]`` in the pattern's order.

    Parameters
    ----------
    dense : Tensor
        Of the weight's shape, contiguous; any floating-point dtype.
    index : TileIndex
        Of the pattern, on the same device.
    """
    values = dense.new_empty(index.layout.nnz)
    plan_pack(dense, index, values).run()
    return values
