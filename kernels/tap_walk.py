"""Which taps of a convolution use a pixel of its input, and the walk over the tiles that hold their weights.

The tap k of an axis, of a kernel with `taps` of them, takes pixel p of the input to the output pixel
(p + pad - k * dilation) / stride, if that is a whole number. Whether it is depends on p % stride alone, the
pixel's *class*, and the taps of one class come at equal distances.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = ["Axis", "Taps"]


class Axis(NamedTuple):
    """A convolution's geometry along one axis.

    Attributes
    ----------
    size : int
        Of the input.
    taps, stride, pad, dilation : int
    common : int
        Greatest common divisor of stride and dilation.
    step : int
        From one tap of a class to the next: stride / common.
    inverse : int
        Of dilation / common, modulo `step`.
    """

    size: int
    taps: int
    stride: int
    pad: int
    dilation: int
    common: int
    step: int
    inverse: int

    @classmethod
    def of(cls, size: int, taps: int, stride: int, pad: int, dilation: int) -> Axis:
        common = math.gcd(stride, dilation)
        step = stride // common
        return cls(size, taps, stride, pad, dilation, common, step, pow(dilation // common, -1, step))

    @property
    def most_taps(self) -> int:
        """Taps of a class, at most."""
        return -(-self.taps // self.step)

    @property
    def most_pixels(self) -> int:
        """Pixels of a class, at most."""
        return -(-self.size // self.stride)


class Taps(NamedTuple):
    """Both axes of a convolution."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, input_size: tuple[int, ...], shape: tuple[int, ...], geometry: tuple[int, ...]) -> Taps:
        """Of a convolution with a weight of `shape`."""
        return cls(*(Axis.of(input_size[2 + i], shape[2 + i], *geometry[i:6:2]) for i in (0, 1)))

    @property
    def classes(self) -> int:
        return self.rows.stride * self.columns.stride


class ClassTaps(NamedTuple):
    """The taps of a class along an axis: `count` of them, from `first` on in steps of `step`, of `taps`.

    Pixel number q of the class is the input's pixel q * stride + residue, and the first of the taps takes it
    to the output's pixel q + origin.
    """

    residue: Any
    first: Any
    count: Any
    origin: Any
    step: Any
    taps: Any


class Walk(NamedTuple):
    """Runs of tiles, one after another, for the channels of a program.

    Attributes
    ----------
    rows, columns : ClassTaps
    first_channel, first_row : int
        Of the program, and of its group of the convolution.
    offsets, ends, total :
        Of each run, the index (in column order) of its first tile less the number of tiles before it, and the
        number of tiles up to its end; and that of all.
    """

    rows: Any
    columns: Any
    first_channel: Any
    first_row: Any
    offsets: Any
    ends: Any
    total: Any


class Step(NamedTuple):
    """Where a step of a walk is.

    Attributes
    ----------
    tile, tile_row, tile_col : int
    tap_row, tap_column : int
        The tap, counted among those of its class.
    column : int
        Of the weight: the program's first channel at that tap.
    in_tile, row, valid :
        Rows within the tile, rows of the weight, and their mask.
    """

    tile: Any
    tile_row: Any
    tile_col: Any
    tap_row: Any
    tap_column: Any
    column: Any
    in_tile: Any
    row: Any
    valid: Any


@triton.jit
def taps_of_class(residue, axis):
    """The `ClassTaps` of the pixels with this remainder.

    A tap k is used where k * dilation = residue + pad modulo stride: a linear congruence.
    """
    wanted = (residue + axis.pad) % axis.stride
    first = wanted // axis.common * axis.inverse % axis.step
    count = tl.where(wanted % axis.common == 0, (axis.taps - first + axis.step - 1) // axis.step, 0)
    # The division is exact wherever there is such a tap, so its rounding does not matter.
    origin = (residue + axis.pad - first * axis.dilation) // axis.stride
    return ClassTaps(residue, first, tl.maximum(count, 0), origin, axis.step, axis.taps)


@triton.jit
def tap_of_run(run, rows, columns, first_channel, sizes, C):
    """(row, column) of a run's tap among those of its class, and the weight's column of the first channel."""
    tap = run // C.SPAN
    width = tl.maximum(columns.count, 1)
    tap_row = tap // width
    tap_column = tap - tap_row * width
    position = (rows.first + tap_row * rows.step) * columns.taps + columns.first + tap_column * columns.step
    return tap_row, tap_column, position * sizes.channels + first_channel


@triton.jit
def lower_bound(pattern, begin, end, tile_row, C):
    """The first of the tiles [begin, end) of each column that is in `tile_row` or below."""
    if C.COMPLETE:
        return tl.minimum(begin + tile_row, end)
    else:
        for _ in range(C.SEARCH):
            middle = (begin + end) // 2
            tile = tl.load(pattern.tile_order_t + middle, mask=begin < end, other=0)
            above = (begin < end) & (tl.load(pattern.tile_row + tile, mask=begin < end, other=0) < tile_row)
            begin = tl.where(above, middle + 1, begin)
            end = tl.where(above, end, middle)
        return begin


@triton.jit
def walk_of_class(pattern, rows, columns, first_channel, first_row, sizes, C):
    """The `Walk` over the tiles of all taps of a class that hold a program's channels, in the rows of the
    group that begins with `first_row`.

    Where the channels of a tap straddle columns of tiles (`C.SPAN` of them, at most), each has a run.
    """
    run = tl.arange(0, C.RUNS)
    _, _, column = tap_of_run(run, rows, columns, first_channel, sizes, C)
    width = tl.minimum(sizes.channels - first_channel, C.WIDTH)
    tile_col = column // C.TILE + run % C.SPAN
    valid = (run < rows.count * columns.count * C.SPAN) & (tile_col <= (column + width - 1) // C.TILE)
    begin = tl.load(pattern.tile_ptr_t + tile_col, mask=valid, other=0)
    end = tl.load(pattern.tile_ptr_t + tile_col + 1, mask=valid, other=0)
    if C.SEARCH > 0:
        last_tile_row = (first_row + sizes.group_rows - 1) // C.TILE
        first = lower_bound(pattern, begin, end, first_row // C.TILE, C)
        end = lower_bound(pattern, first, end, last_tile_row + 1, C)
        begin = first
    ends = tl.cumsum(end - begin, 0)
    total = tl.sum(end - begin, 0)
    return Walk(rows, columns, first_channel, first_row, end - ends, ends, total)


@triton.jit
def step_of_walk(pattern, walk, step, end, sizes, C):
    """The `Step` at a number of steps into a walk; from `end` on, none of its rows is valid."""
    number = step // C.PARTS
    run = tl.sum((walk.ends <= number).to(tl.int32), 0)
    offset = tl.sum(tl.where(tl.arange(0, C.RUNS) == run, walk.offsets, 0), 0)
    tap_row, tap_column, column = tap_of_run(run, walk.rows, walk.columns, walk.first_channel, sizes, C)
    tile_col = column // C.TILE + run % C.SPAN
    if C.COMPLETE:
        # Nothing has to be read first, so that what lies there can be fetched early.
        tile_row = number + offset - tile_col * sizes.tile_rows
        tile = tile_row * sizes.tile_cols + tile_col
    else:
        tile = tl.load(pattern.tile_order_t + number + offset, mask=step < end, other=0)
        tile_row = tl.load(pattern.tile_row + tile, mask=step < end, other=0)
    in_tile = step % C.PARTS * C.ROWS + tl.arange(0, C.ROWS)
    row = tile_row * C.TILE + in_tile
    valid = (row < walk.first_row + sizes.group_rows) & (step < end)
    if C.SEARCH > 0:
        valid &= row >= walk.first_row
    if C.TILE < C.ROWS:
        valid &= in_tile < C.TILE
    return Step(tile.to(tl.int64), tile_row, tile_col, tap_row, tap_column, column, in_tile, row, valid)
