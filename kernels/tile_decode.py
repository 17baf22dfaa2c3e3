"""Bitmap tiles to dense tiles, the step that every Triton kernel on sparse weights begins with.

`decode_tile` is the building block: it expands one tile in registers. `unpack` is the op made of it alone,
and what it is tested through.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def popcount(word):
    """Set bits of a 32-bit word.

    The halves are summed in parallel, which the compiler recognizes and replaces by the one instruction POPC;
    Triton has no operation for it that the interpreter runs too.
    """
    word = word.to(tl.uint32, bitcast=True)
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def decode_tile(values, tile_start, row_offset, bits, tile, TILE: tl.constexpr):
    """The tile as a (TILE, TILE) block, 0 where it is not active. `tile` is its int64 index."""
    row = tl.arange(0, TILE)
    column = tl.arange(0, TILE)[None, :]
    # Only the tile's own place needs 64 bits; within a tile every index is small.
    values += tl.load(tile_start + tile)
    first = tl.load(row_offset + tile * TILE + row).to(tl.int32)[:, None]
    bits += tile * (TILE * TILE // 32)
    if TILE == 64:
        low = tl.load(bits + row * 2)[:, None]
        high = tl.load(bits + row * 2 + 1)[:, None]
        word = tl.where(column < 32, low, high)
        first += tl.where(column < 32, 0, popcount(low))
    else:
        word = tl.load(bits + row)[:, None]
    bit = tl.full((1, TILE), 1, tl.int32) << (column % 32)
    index = first + popcount(word & (bit - 1))
    return tl.load(values + index, mask=(word & bit) != 0, other=0.0)


@triton.jit
def find_tile(tile_row_ptr, tile_col, tile_row, wanted, STEPS: tl.constexpr):
    """Index of the tile at (tile_row, wanted), or -1 where none is stored; STEPS halvings find it."""
    low = tl.load(tile_row_ptr + tile_row)
    end = tl.load(tile_row_ptr + tile_row + 1)
    high = end
    for _ in range(STEPS):
        middle = (low + high) // 2
        below = tl.load(tile_col + middle, mask=low < high, other=wanted) < wanted
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    found = tl.load(tile_col + low, mask=low < end, other=-1) == wanted
    return tl.where(found, low, -1)


@triton.jit
def unpack_kernel(
    values,
    tile_start,
    tile_row_ptr,
    tile_col,
    row_offset,
    bits,
    dense,
    rows,
    cols,
    TILE: tl.constexpr,
    STEPS: tl.constexpr,
):
    """One program for one tile of `dense`, stored or not, so that each element is written once."""
    tile_row = tl.program_id(0)
    column = tl.program_id(1)
    tile = find_tile(tile_row_ptr, tile_col, tile_row, column, STEPS)
    row_index = tile_row * TILE + tl.arange(0, TILE)[:, None]
    col_index = column * TILE + tl.arange(0, TILE)[None, :]
    inside = (row_index < rows) & (col_index < cols)
    place = dense + row_index.to(tl.int64) * cols + col_index
    if tile >= 0:
        block = decode_tile(values, tile_start, row_offset, bits, tile.to(tl.int64), TILE)
        tl.store(place, block, mask=inside)
    else:
        tl.store(place, tl.full((TILE, TILE), 0, dense.dtype.element_ty), mask=inside)


def search_steps(tile_cols: int) -> int:
    """Halvings after which a search among at most `tile_cols` tiles has ended."""
    return tile_cols.bit_length()


def unpack(values: torch.Tensor, pattern: Any) -> torch.Tensor:
    """dense[n, k] = values[index of (n, k)] where the pattern is active, 0 elsewhere.

    Parameters
    ----------
    values : Tensor of shape (nnz,)
        Any floating-point dtype, contiguous.
    pattern : Pattern
        Tile size 32 or 64, on the device of `values`.

    Returns
    -------
    Tensor of shape (N, K)
        The weight matrix: for a convolution, columns are in (kh, kw, cin) order.

    Raises
    ------
    ValueError
        If the tile size is not 32 or 64, or `values` does not fit the pattern.
    """
    if pattern.tile_size not in (32, 64):
        raise ValueError(f"pattern: expected a tile size of 32 or 64, got {pattern.tile_size}")
    if tuple(values.shape) != (pattern.nnz,) or not values.is_floating_point():
        got = f"{tuple(values.shape)} of {values.dtype}"
        raise ValueError(f"values: expected shape ({pattern.nnz},) of a floating-point dtype, got {got}")
    rows, cols = pattern.matrix_shape
    tile = pattern.tile_size
    grid = (triton.cdiv(rows, tile), triton.cdiv(cols, tile))
    dense = torch.empty(rows, cols, dtype=values.dtype, device=values.device)
    unpack_kernel[grid](
        values.contiguous(),
        pattern.tile_start,
        pattern.tile_row_ptr,
        pattern.tile_col,
        pattern.row_offset,
        pattern.bits,
        dense,
        rows,
        cols,
        TILE=tile,
        STEPS=search_steps(grid[1]),
        num_warps=tile // 8,
    )
    return dense
