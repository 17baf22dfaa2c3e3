"""`conv2d_grad_values` in Triton: sums over pixels of output gradients times what taps read, where active.

A program owns a tile, or an aligned group of 2 x 2 tiles, computes all of it as a product and keeps what the
bits say. Tiles that are not stored cost nothing, and nothing dense is written.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.blocks import multiply, split_range
from sparsekern.kernels.configs import Config, Problem, padded, sum_configs
from sparsekern.kernels.conv2d import WeightSizes, lean
from sparsekern.kernels.launch import Constants, Launch, Sections, add_parts, split_parts
from sparsekern.kernels.pixels import (
    Grid,
    Strides,
    Window,
    channel_run,
    first_pixel,
    first_taps,
    groups_in_tile,
    is_wide,
    load_columns,
    load_pixels,
    next_pixel,
    pixels_from,
)
from sparsekern.kernels.tile_decode import store_gradients, tile_row_of
from sparsekern.kernels.tuning import choose


@triton.jit
def tile_of_program(pattern, tile, sizes, C):
    """(tile row, tile column) of a tile, and whether its program owns anything: each group of tiles is owned
    by the program of its first."""
    tile_row = tile_row_of(pattern, tile, sizes.tile_cols, C)
    if C.COMPLETE:
        tile_col = tile - tile_row * sizes.tile_cols
    else:
        tile_col = tl.load(pattern.tile_col + tile)
    return tile_row, tile_col, (tile_row % C.GROUP == 0) & (tile_col % C.GROUP == 0)


@triton.jit
def conv2d_grad_values_kernel(
    grad_y, x, grad, pattern, sizes, window, grad_y_strides, x_strides, part, grid, C
):
    split = tl.program_id(0) // grid.programs
    program = tl.program_id(0) % grid.programs
    tile = program // grid.each
    tile_row, tile_col, owned = tile_of_program(pattern, tile, sizes, C)
    # Rows of one group of the convolution, of those in this row of tiles: another group reads other channels.
    group = tile_row * C.TILE // sizes.group_rows + program % grid.each
    first_row = group * sizes.group_rows
    end_row = tl.minimum(first_row + sizes.group_rows, sizes.rows)
    in_block = tl.arange(0, C.ROWS)
    row = tile_row * C.TILE + in_block
    valid = owned & (in_block < C.GROUP * C.TILE) & (row >= first_row) & (row < end_row)

    begin, end = split_range(grid.blocks, split, C.SPLITS)
    empty = (first_row >= sizes.rows) | (first_row >= (tile_row + C.GROUP) * C.TILE)
    end = tl.where(owned & (empty == 0), end, begin)
    image, place = first_pixel(begin, window, C.SAMPLES)
    column, width, offset = tile_col * C.TILE, C.GROUP * C.TILE, group * sizes.channels
    acc = tl.zeros((C.ROWS, C.COLUMNS), tl.float32)
    for _ in tl.range(0, end - begin):
        pixels = pixels_from(image, place, window, C.SAMPLES)
        grad_block = load_pixels(grad_y, pixels, window.images, row, valid, grad_y_strides, C)
        taps = first_taps(pixels, window, x_strides, C)
        x_block = load_columns(x, taps, column, width, offset, sizes, window, x_strides, C)
        if C.NARROW:
            acc = multiply(grad_block, tl.trans(x_block), acc, C.PRECISION)
        else:
            acc = multiply(tl.trans(grad_block), x_block, acc, C.PRECISION)
        image, place = next_pixel(image, place, window, C.SAMPLES)

    rows, columns, channels, positions = sizes.rows, sizes.columns, sizes.channels, sizes.positions
    row = tl.where(valid, row, rows)
    column += tl.arange(0, C.COLUMNS)
    grad += split.to(tl.int64) * part
    store_gradients(
        grad, acc, pattern, tile, tile_row, tile_col, row, rows, column, columns, channels, positions, C
    )


def plan(
    grad_y: Tensor, x: Tensor, index: Any, geometry: tuple[int, ...], grad: Tensor, config: Config
) -> Launch:
    """The launch for one problem; `grad` has the config's splits as its first dimension, if several."""
    layout = index.layout
    sizes = WeightSizes.of(layout, geometry[6])
    window = Window.of_output(x, layout.shape, geometry)
    groups_each = groups_in_tile(sizes.group_rows, geometry[6], layout.tile_size)
    part, weight = (grad.stride(0), grad[0]) if config.splits > 1 else (0, grad)
    size = layout.tile_size * config.group
    constants = Constants.of(index, weight, x.dtype, config)._replace(
        NARROW=x.stride(1) != 1,
        ROWS=padded(size),
        COLUMNS=padded(size),
        ALIGNED=sizes.channels % size == 0,
        RUN=channel_run(sizes.channels),
        WIDE=is_wide(grad_y, x),
    )
    blocks = triton.cdiv(window.pixels, config.samples)
    grid = Grid(blocks, layout.tiles * groups_each, groups_each)
    arguments = (
        grad_y,
        x,
        grad,
        Sections.of(index),
        sizes,
        window,
        Strides(*grad_y.stride()),
        Strides(*x.stride()),
        part,
        grid,
    )
    launched = grid.programs * config.splits
    return Launch(conv2d_grad_values_kernel, launched, arguments, constants, config.warps, config.stages)


def conv2d_grad_values(
    grad_y: Tensor, x: Tensor, index: Any, values_shape: tuple[int, ...], geometry: tuple[int, ...]
) -> Tensor:
    """``torch.nn.grad.conv2d_weight(x, shape, grad_y, ...)`` at the active positions.

    Parameters
    ----------
    grad_y : Tensor
        ``(batch, cout, out_height, out_width)``, of any strides; of x's dtype and device.
    x : Tensor
        ``(batch, groups * cin, height, width)``, of any strides; float32, bfloat16 or float16.
    index : TileIndex
        Of the weight's pattern.
    values_shape : tuple of int
        ``(nnz,)``, or ``(cout, cin, kh, kw)`` for the gradient of a dense weight, 0 at inactive positions.
    geometry : tuple of int
        See `sparsekern.geometry`.

    Returns
    -------
    Tensor
        Of shape `values_shape`; sums are in float32.
    """
    masked = len(values_shape) > 1
    grad = x.new_zeros(values_shape) if masked else x.new_empty(values_shape)
    window = Window.of_output(x, index.layout.shape, geometry)

    def run(config: Config) -> None:
        parts = split_parts(grad, config.splits, zeroed=masked)
        plan(grad_y, x, index, geometry, parts, config).run()
        add_parts(parts, grad)

    run(choose(*grad_values_configs(x, index, window, geometry), run))
    return grad


def grad_values_configs(
    x: Tensor, index: Any, window: Window, geometry: tuple[int, ...]
) -> tuple[tuple[Config, ...], Problem]:
    """Configs, and the problem that they are for."""
    layout = index.layout
    group_rows = layout.rows // geometry[6]
    outputs = layout.tiles * groups_in_tile(group_rows, geometry[6], layout.tile_size)
    problem = Problem.of("conv2d_grad_values", x, window.pixels, outputs, 0, index)
    # The rows of a group of tiles must lie in one group of the convolution.
    if geometry[6] > 1 and group_rows % (2 * layout.tile_size):
        problem = replace(problem, paired=False)
    aligned = layout.shape[1] % layout.tile_size == 0
    return lean(sum_configs(problem), problem, aligned=aligned, vectors=x.stride(1) == 1), problem
