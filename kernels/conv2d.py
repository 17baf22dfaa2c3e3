"""`conv2d` in Triton: y = conv(x, W) + b, as the product of the packed weight and the pixels its taps read.

A program owns a block of output pixels and a row of tiles, or two that hold tiles in the same columns, and
walks along it. A step's columns are a run of channels at one tap, or where the channels are too few for that,
at several; what they read is gathered from x as it lies. Where its channels come last, the pixels are the
first operand of the product, so that threads read along channels; otherwise the weight is, so that they read
along pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.blocks import multiply, place_of_program, split_range
from sparsekern.kernels.configs import Config, Problem, padded, product_configs, settled_precision
from sparsekern.kernels.launch import Constants, Launch, Sections, add_parts, at_least_one, split_parts
from sparsekern.kernels.linear import column_of, row_octets
from sparsekern.kernels.pixels import (
    Grid,
    Strides,
    Window,
    channel_run,
    first_pixel,
    first_taps,
    is_channels_last,
    is_wide,
    load_columns,
    pixels_from,
    store_pixels,
    tiles_in_group,
)
from sparsekern.kernels.tile_decode import decode_octets, load_weights
from sparsekern.kernels.tuning import choose

# Triton's major and minor version.
COMPILER = tuple(int(part) for part in triton.__version__.split(".")[:2])


class WeightSizes(NamedTuple):
    """Sizes of a convolution's weight as a matrix.

    Attributes
    ----------
    rows, columns, tile_rows, tile_cols : int
        As in `Layout`.
    channels, positions : int
        Input channels of a group, and positions of the kernel.
    group_rows : int
        Rows of one group of the convolution.
    """

    rows: int
    columns: int
    tile_rows: int
    tile_cols: int
    channels: int
    positions: int
    group_rows: int

    @classmethod
    def of(cls, layout: Any, groups: int) -> WeightSizes:
        channels = layout.shape[1]
        return cls(
            layout.rows,
            layout.cols,
            layout.tile_rows,
            layout.tile_cols,
            channels,
            layout.cols // channels,
            layout.rows // groups,
        )


@triton.jit
def rows_of_program(program, each, sizes, C):
    """(group, tile row, row, valid): the rows of one group of the convolution that a program owns.

    Each group has as many programs as the one that lies in most rows of tiles needs, so some own nothing.
    """
    group = program // each
    tile_row = group * sizes.group_rows // C.TILE + program % each * C.GROUP
    place = tl.arange(0, C.ROWS)
    row = tile_row * C.TILE + place
    valid = (place < C.GROUP * C.TILE) & (row >= group * sizes.group_rows)
    return group, tile_row, row, valid & (row < (group + 1) * sizes.group_rows)


@triton.jit
def load_step(weight, pattern, octets, start, tile, row, valid, first_column, sizes, C):
    """The weights (ROWS, COLUMNS) of a step, 0 where not active."""
    column = first_column + tl.arange(0, C.COLUMNS)
    inside = valid[:, None] & ((column < sizes.columns) & (column < first_column + C.TILE))[None, :]
    row, column, columns = row[:, None], column[None, :], sizes.columns
    channels, positions = sizes.channels, sizes.positions
    return load_weights(
        weight, pattern, octets, start, tile, row, column, columns, channels, positions, inside, C
    )


@triton.jit
def conv2d_kernel(x, weight, bias, y, pattern, sizes, window, x_strides, y_strides, part, grid, C):
    split, block, program = place_of_program(grid.blocks, grid.programs)
    group, tile_row, row, valid = rows_of_program(program, grid.each, sizes, C)
    image, place = first_pixel(block, window, C.SAMPLES)
    pixels = pixels_from(image, place, window, C.SAMPLES)
    taps = first_taps(pixels, window, x_strides, C)

    in_tile = tl.arange(0, C.ROWS)
    owned = tile_row * C.TILE < (group + 1) * sizes.group_rows
    first = tl.load(pattern.tile_row_ptr + tile_row, mask=owned, other=0)
    tiles = tl.load(pattern.tile_row_ptr + tile_row + 1, mask=owned, other=0) - first
    tile = tl.where(in_tile < C.TILE, first, first + tiles).to(tl.int64)
    begin, end = split_range(tiles * C.PARTS, split, C.SPLITS)

    acc = tl.zeros((C.ROWS, C.SAMPLES) if C.NARROW else (C.SAMPLES, C.ROWS), tl.float32)
    octets, start = row_octets(pattern, first, first + tiles, in_tile, begin, end, valid, C)
    if C.PREFETCH:
        fetched = decode_octets(weight, octets, start, C.ROWS, C.COLUMNS)
        octets, start = row_octets(pattern, first, first + tiles, in_tile, begin + 1, end, valid, C)
    for i in tl.range(0, end - begin):
        step = begin + i
        column = column_of(pattern, first, step, C)
        if C.PREFETCH:
            weights = fetched
            fetched = decode_octets(weight, octets, start, C.ROWS, C.COLUMNS)
        else:
            at = tile[:, None] + step // C.PARTS
            weights = load_step(weight, pattern, octets, start, at, row, valid, column, sizes, C)
        octets, start = row_octets(
            pattern, first, first + tiles, in_tile, step + 1 + C.PREFETCH, end, valid, C
        )
        x_block = load_columns(x, taps, column, C.TILE, group * sizes.channels, sizes, window, x_strides, C)
        if C.NARROW:
            acc = multiply(weights, x_block, acc, C.PRECISION)
        else:
            acc = multiply(x_block, tl.trans(weights), acc, C.PRECISION)

    if C.HAS_BIAS:
        bias_block = tl.load(bias + row, mask=valid, other=0).to(tl.float32)
        acc += bias_block[:, None] if C.NARROW else bias_block[None, :]
    store_pixels(y + split.to(tl.int64) * part, acc, pixels, window.images, row, valid, y_strides, C)


def plan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Any,
    geometry: tuple[int, ...],
    y: Tensor,
    config: Config,
) -> Launch:
    """The launch for one problem; `y` has the config's splits as its first dimension if there are several."""
    sizes = WeightSizes.of(index.layout, geometry[6])
    window = Window.of_output(x, index.layout.shape, geometry)
    tile_size = index.layout.tile_size
    each = triton.cdiv(tiles_in_group(sizes.group_rows, tile_size), config.group)
    grid = Grid(triton.cdiv(window.pixels, config.samples), each * geometry[6], each)
    part, y_strides = (y.stride(0), y.stride()[1:]) if config.splits > 1 else (0, y.stride())
    config = replace(config, depth=depth_for(sizes.channels, config.depth))
    depth = min(tile_size, config.depth)
    bias = bias if config.splits == 1 else None
    constants = Constants.of(index, weight, x.dtype, config)
    constants = constants._replace(
        PRECISION=settled_precision(constants.PRECISION, x.device),
        NARROW=config.narrow or x.stride(1) != 1,
        ROWS=padded(tile_size * config.group),
        COLUMNS=padded(depth),
        HAS_BIAS=bias is not None,
        ALIGNED=sizes.channels % depth == 0,
        RUN=channel_run(sizes.channels),
        WIDE=is_wide(x, y if config.splits == 1 else y[0]),
    )
    arguments = (
        x,
        weight,
        bias,
        y,
        Sections.of(index),
        sizes,
        window,
        Strides(*x.stride()),
        Strides(*y_strides),
        part,
        grid,
    )
    launched = grid.blocks * grid.programs * config.splits
    return Launch(conv2d_kernel, launched, arguments, constants, config.warps, config.stages)


def depth_for(channels: int, depth: int) -> int:
    """`depth`, or the largest smaller number of columns that lie at one tap, if there is one."""
    return next((size for size in (64, 32, 16) if size <= depth and channels % size == 0), depth)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, index: Any, geometry: tuple[int, ...]) -> Tensor:
    """``F.conv2d(x, W, bias, stride, padding, dilation, groups)`` of an x of any strides.

    Parameters
    ----------
    x : Tensor
        ``(batch, groups * cin, height, width)``, float32, bfloat16 or float16.
    weight : Tensor
        ``(nnz,)``, or dense ``(cout, cin, kh, kw)`` and contiguous; of x's dtype and device, as `bias`.
    bias : Tensor or None
        ``(cout,)``.
    index : TileIndex
        Of the weight's pattern.
    geometry : tuple of int
        See `sparsekern.geometry`.

    Returns
    -------
    Tensor
        ``(batch, cout, out_height, out_width)`` in x's memory format; sums are in float32.
    """
    layout = index.layout
    window = Window.of_output(x, layout.shape, geometry)
    y = new_images(x, (x.shape[0], layout.rows, window.plane.value // window.width.value, window.width.value))

    def run(config: Config) -> None:
        parts = split_parts(y, config.splits)
        plan(x, at_least_one(weight), bias, index, geometry, parts, config).run()
        add_parts(parts, y, None if bias is None else bias.view(-1, 1, 1))

    run(choose(*conv2d_configs(x, index, window, geometry), run))
    return y


def conv2d_configs(
    x: Tensor, index: Any, window: Window, geometry: tuple[int, ...]
) -> tuple[tuple[Config, ...], Problem]:
    """Configs, and the problem that they are for."""
    layout = index.layout
    group_rows = layout.rows // geometry[6]
    outputs = tiles_in_group(group_rows, layout.tile_size) * geometry[6]
    problem = Problem.of("conv2d", x, window.pixels, outputs, layout.tile_cols, index)
    # Two rows of tiles of one program must lie in one group of the convolution.
    alone = group_rows <= layout.tile_size
    if alone or (geometry[6] > 1 and group_rows % (2 * layout.tile_size)):
        problem = replace(problem, paired=False)
    channels = layout.shape[1]
    aligned = channels % min(layout.tile_size, depth_for(channels, 64)) == 0
    return lean(product_configs(problem), problem, aligned=aligned, vectors=x.stride(1) == 1), problem


def lean(
    configs: tuple[Config, ...], problem: Problem, *, aligned: bool, vectors: bool
) -> tuple[Config, ...]:
    """Those of `configs` that leave registers for the addresses of pixels.

    They are many where each column has a tap of its own (not `aligned`), and where pixels are not read in
    `vectors` of channels: 16-bit elements are then too small to be copied past the registers.
    """
    old, sums = problem.capability < 90, problem.steps == 0
    if sums and not aligned and not vectors:
        # More threads hold fewer addresses each; products of IEEE float32 hold their operands too.
        most = 16 if problem.precision == "ieee" else 64
        return tuple(replace(config, warps=8) for config in configs if config.samples * config.group <= most)
    most = 256
    if (old and sums) or (not aligned and problem.element_size == 4):
        most = 64
    elif not aligned or (not vectors and (old or sums)):
        most = 128
    if COMPILER < (3, 7) and not (vectors or sums) and problem.precision != "ieee":
        return _with_few_addresses(configs, problem)
    if problem.capability >= 100 and not sums:
        # There the compiler holds two rows of tiles and few pixels to 128 registers, which do not suffice.
        configs = tuple(config for config in configs if config.group == 1 or config.samples > 64)
    return tuple(config for config in configs if config.samples * config.group <= most)


def _with_few_addresses(configs: tuple[Config, ...], problem: Problem) -> tuple[Config, ...]:
    """Those of `configs` whose threads read 16 elements at a time, with eight warps where four read more.

    Triton up to 3.6 holds more addresses at once than later versions, and no registers are left for them.
    """

    def elements(config: Config) -> int:
        return config.samples * min(config.depth, padded(problem.tile_size)) // (32 * config.warps)

    fitted = (replace(config, warps=8) if elements(config) > 16 else config for config in configs)
    few = dict.fromkeys(config for config in fitted if config.narrow or elements(config) <= 16)
    return tuple(few) or configs


def new_images(like: Tensor, size: tuple[int, ...]) -> Tensor:
    """Uninitialized images in the memory format of `like`."""
    memory_format = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)
