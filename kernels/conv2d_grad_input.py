"""`conv2d_grad_input` in Triton: each pixel of x gathers what the output's gradient has for it.

A program owns a block of input pixels and a block of channels. Pixels whose rows and columns leave the same
remainders when divided by the strides are used by the same taps, so a program owns pixels of one such class,
and walks over the tiles of its class's taps alone. Nothing is scattered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.blocks import multiply, place_of_program, split_range
from sparsekern.kernels.configs import Config, Problem, padded, product_configs
from sparsekern.kernels.conv2d import WeightSizes, new_images
from sparsekern.kernels.launch import Constants, Launch, Sections, add_parts, split_parts
from sparsekern.kernels.pixels import (
    Strides,
    Window,
    first_pixel,
    is_wide,
    load_tap,
    pixels_from,
    places_of_pixels,
    store_pixels,
)
from sparsekern.kernels.tap_walk import Taps, step_of_walk, taps_of_class, walk_of_class
from sparsekern.kernels.tile_decode import (
    dense_places,
    load_octets,
    load_weights,
    popcount,
)
from sparsekern.kernels.tuning import choose


@triton.jit
def rows_of_step(at, step, end, first_row, end_row, C):
    """(place in the tile, row, valid) of the rows of one step."""
    in_tile = step % C.PARTS * C.ROWS + tl.arange(0, C.ROWS)
    row = at.tile_row * C.TILE + in_tile
    valid = (row < end_row) & (step < end)
    if C.SEARCH > 0:
        valid &= row >= first_row
    if C.TILE < C.ROWS:
        valid &= in_tile < C.TILE
    return in_tile, row, valid


@triton.jit
def tile_octets(pattern, at, in_tile, valid, C):
    """The octets of a step: of rows of a tile, or of two side by side, from the step's column on."""
    octet = tl.arange(0, C.COLUMNS // 8)
    inside = valid[:, None] & (octet < C.WIDTH // 8)[None, :]
    octet += at.column % C.TILE // 8
    tile = at.tile + (octet // (C.TILE // 8))[None, :]
    return load_octets(pattern, tile, in_tile[:, None], (octet % (C.TILE // 8))[None, :], inside, C.TILE)


@triton.jit
def load_scattered(weight, pattern, at, in_tile, row, column, inside, sizes, C):
    """The weights at any columns of a step's tile, each found on its own; 0 where not active or `inside`."""
    octet = (column % C.TILE // 8)[None, :]
    tile = at.tile + tl.zeros_like(octet)
    octets, start = load_octets(pattern, tile, in_tile[:, None], octet, inside, C.TILE)
    bit = (column % 8)[None, :]
    if C.MASKED:
        place = dense_places(
            weight, row[:, None], column[None, :], sizes.columns, sizes.channels, sizes.positions
        )
    else:
        place = weight + start + popcount(octets & ((1 << bit) - 1))
    return tl.load(place, mask=((octets >> bit) & 1) != 0, other=0)


@triton.jit
def load_step(weight, pattern, at, octets, start, in_tile, row, valid, channels, sizes, C):
    """The weights (ROWS, COLUMNS) of a step, 0 where not active; `channels` are those left from the first."""
    in_block = tl.arange(0, C.COLUMNS)
    column = at.column + in_block
    if C.ALIGNED:
        inside = valid[:, None] & (in_block < C.WIDTH)[None, :]
        tile = at.tile + ((at.column % C.TILE + in_block) // C.TILE)[None, :]
        return load_weights(
            weight,
            pattern,
            octets,
            start,
            tile,
            row[:, None],
            column[None, :],
            sizes.columns,
            sizes.channels,
            sizes.positions,
            inside,
            C,
        )
    else:
        own = (in_block < tl.minimum(channels, C.WIDTH)) & (column // C.TILE == at.tile_col)
        inside = valid[:, None] & own[None, :]
        return load_scattered(weight, pattern, at, in_tile, row, column, inside, sizes, C)


@triton.jit
def pixels_of_program(block, taps, window, rows, columns, strides, C):
    """(image, row, column) of a program's pixels among those of their class, and the (place, row, column) of
    the pixels of grad_y that the first taps of the class take them to."""
    image, pixel = first_pixel(block, window, C.SAMPLES)
    image, row, column = pixels_from(image, pixel, window, C.SAMPLES)
    out_row = tl.where(image < window.images, row + rows.origin, -(1 << 30))
    out_column = column + columns.origin
    place = places_of_pixels(image, out_row, out_column, strides, C)
    return image, row * taps.rows.stride, column * taps.columns.stride, place, out_row, out_column


@triton.jit
def conv2d_grad_input_kernel(
    grad_y,
    weight,
    grad_x,
    pattern,
    sizes,
    window,
    taps,
    height,
    width,
    grad_y_strides,
    grad_x_strides,
    part,
    blocks,
    programs,
    channel_blocks,
    C,
):
    split, block, program = place_of_program(blocks, programs)
    classes = taps.rows.stride * taps.columns.stride
    row_class = block % classes // taps.columns.stride
    column_class = block % classes % taps.columns.stride
    rows = taps_of_class(row_class, taps.rows)
    columns = taps_of_class(column_class, taps.columns)
    image, pixel_row, pixel_column, place, out_row, out_column = pixels_of_program(
        block // classes, taps, window, rows, columns, grad_y_strides, C
    )

    group = program // channel_blocks
    first_channel = program % channel_blocks * C.WIDTH
    first_row = group * sizes.group_rows
    end_row = first_row + sizes.group_rows
    walk = walk_of_class(pattern, rows, columns, first_channel, first_row, sizes, C)
    begin, end = split_range(walk.total * C.PARTS, split, C.SPLITS)

    acc = tl.zeros((C.COLUMNS, C.SAMPLES) if C.NARROW else (C.SAMPLES, C.COLUMNS), tl.float32)
    at = step_of_walk(pattern, walk, begin, end, rows, columns, first_channel, sizes, C)
    in_tile, row, valid = rows_of_step(at, begin, end, first_row, end_row, C)
    octets, start = row, row
    if C.ALIGNED:
        octets, start = tile_octets(pattern, at, in_tile, valid, C)
    for i in tl.range(0, end - begin):
        step = begin + i
        at = step_of_walk(pattern, walk, step, end, rows, columns, first_channel, sizes, C)
        in_tile, row, valid = rows_of_step(at, step, end, first_row, end_row, C)
        weights = load_step(
            weight,
            pattern,
            at,
            octets,
            start,
            in_tile,
            row,
            valid,
            sizes.channels - first_channel,
            sizes,
            C,
        )
        if grad_y.dtype.element_ty == tl.float32:
            # Changes nothing, but Triton fails to lay out float32 operands that come straight from a decode.
            weights = tl.where(valid[:, None], weights, 0)
        block_y = load_tap(
            grad_y,
            place,
            out_row,
            out_column,
            at.tap_row,
            at.tap_column,
            row,
            valid,
            window,
            grad_y_strides,
            C,
        )
        if C.ALIGNED:
            after = step_of_walk(pattern, walk, step + 1, end, rows, columns, first_channel, sizes, C)
            in_tile, row, valid = rows_of_step(after, step + 1, end, first_row, end_row, C)
            octets, start = tile_octets(pattern, after, in_tile, valid, C)
        if C.NARROW:
            acc = multiply(tl.trans(weights), block_y, acc, C.PRECISION)
        else:
            acc = multiply(block_y, weights, acc, C.PRECISION)

    pixel_row += row_class
    pixel_column += column_class
    image = tl.where((pixel_row < height) & (pixel_column < width), image, window.images)
    channel = first_channel + tl.arange(0, C.COLUMNS)
    valid = (channel < sizes.channels) & (channel < first_channel + C.WIDTH)
    grad_x += split.to(tl.int64) * part
    channel += group * sizes.channels
    store_pixels(
        grad_x, acc, image, window.images, pixel_row, pixel_column, channel, valid, grad_x_strides, C
    )


def plan(
    grad_y: Tensor, weight: Tensor, index: Any, geometry: tuple[int, ...], grad_x: Tensor, config: Config
) -> Launch:
    """The launch for one problem; `grad_x` has the config's splits as its first dimension, if several."""
    layout = index.layout
    sizes = WeightSizes.of(layout, geometry[6])
    part, result = (grad_x.stride(0), grad_x[0]) if config.splits > 1 else (0, grad_x)
    taps = Taps.of(layout.shape, geometry)
    window = Window.of_classes(grad_y, result, taps)
    width, aligned = channel_block(sizes.channels, layout.tile_size, config.group)
    # Channels that begin anywhere in a tile straddle one column of tiles more than those that begin one.
    span = 1 if aligned else (width + layout.tile_size - 2) // layout.tile_size + 1
    constants = Constants.of(index, weight, grad_y.dtype, config)._replace(
        NARROW=config.narrow or grad_y.stride(1) != 1,
        PREFETCH=False,
        ROWS=padded(min(layout.tile_size, config.depth)),
        COLUMNS=padded(width),
        WIDTH=width,
        ALIGNED=aligned,
        SPAN=span,
        RUNS=triton.next_power_of_2(taps.rows.most_taps * taps.columns.most_taps * span),
        SEARCH=layout.tile_rows.bit_length() if geometry[6] > 1 else 0,
        WIDE=is_wide(grad_y, result),
    )
    blocks = triton.cdiv(window.pixels, config.samples) * taps.classes
    channel_blocks = triton.cdiv(sizes.channels, width)
    programs = channel_blocks * geometry[6]
    arguments = (
        grad_y,
        weight,
        grad_x,
        Sections.of(index),
        sizes,
        window,
        taps,
        *result.shape[2:],
        Strides(*grad_y.stride()),
        Strides(*result.stride()),
        part,
        blocks,
        programs,
        channel_blocks,
    )
    launched = blocks * programs * config.splits
    return Launch(conv2d_grad_input_kernel, launched, arguments, constants, config.warps, config.stages)


def channel_block(channels: int, tile_size: int, group: int) -> tuple[int, bool]:
    """Channels of a program, and whether they are whole octets of the same tiles at every tap."""
    size = tile_size * group
    if channels % size == 0:
        return size, True
    for width in (32, 16, 8):
        if width <= tile_size and channels % width == 0:
            return width, True
    return min(tile_size, triton.next_power_of_2(channels)), False


def conv2d_grad_input(
    grad_y: Tensor, weight: Tensor, index: Any, input_size: tuple[int, ...], geometry: tuple[int, ...]
) -> Tensor:
    """``torch.nn.grad.conv2d_input(input_size, W, grad_y, ...)``.

    Parameters
    ----------
    grad_y : Tensor
        ``(batch, cout, out_height, out_width)``, of any strides; float32, bfloat16 or float16.
    weight : Tensor
        ``(nnz,)``, or dense ``(cout, cin, kh, kw)`` and contiguous; of grad_y's dtype and device.
    index : TileIndex
        Of the weight's pattern.
    input_size : tuple of int
        ``(batch, groups * cin, height, width)``.
    geometry : tuple of int
        See `sparsekern.geometry`.

    Returns
    -------
    Tensor
        Of shape `input_size`, in grad_y's memory format; sums are in float32.
    """
    grad_x = new_images(grad_y, input_size)

    def run(config: Config) -> None:
        parts = split_parts(grad_x, config.splits)
        plan(grad_y, weight, index, geometry, parts, config).run()
        add_parts(parts, grad_x)

    run(choose(*grad_input_configs(grad_y, grad_x, index, geometry), run))
    return grad_x


def grad_input_configs(
    grad_y: Tensor, grad_x: Tensor, index: Any, geometry: tuple[int, ...]
) -> tuple[tuple[Config, ...], Problem]:
    """Configs, and the problem that they are for."""
    layout = index.layout
    channels, tile_size = layout.shape[1], layout.tile_size
    taps = Taps.of(layout.shape, geometry)
    pixels = Window.of_classes(grad_y, grad_x, taps).pixels * taps.classes
    outputs = triton.cdiv(channels, channel_block(channels, tile_size, 1)[0]) * geometry[6]
    steps = layout.tile_rows * taps.rows.most_taps * taps.columns.most_taps
    problem = Problem.of("conv2d_grad_input", grad_y, pixels, outputs, steps, index)
    # Two columns of tiles of one program must lie at one tap.
    if channels % (2 * tile_size):
        problem = replace(problem, paired=False)
    return product_configs(problem), problem
