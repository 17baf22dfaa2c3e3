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
from sparsekern.kernels.configs import Config, Problem, padded, product_configs, settled_precision
from sparsekern.kernels.conv2d import WeightSizes, lean, new_images
from sparsekern.kernels.launch import Constants, Launch, Sections, add_parts, at_least_one, split_parts
from sparsekern.kernels.pixels import (
    FirstTaps,
    Grid,
    Pixels,
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
def tile_octets(pattern, at, C):
    """The octets of a step: of rows of a tile, or of two side by side, from the step's column on."""
    octet = tl.arange(0, C.COLUMNS // 8)
    inside = at.valid[:, None] & (octet < C.WIDTH // 8)[None, :]
    octet += at.column % C.TILE // 8
    tile = at.tile + (octet // (C.TILE // 8))[None, :]
    return load_octets(pattern, tile, at.in_tile[:, None], (octet % (C.TILE // 8))[None, :], inside, C.TILE)


@triton.jit
def load_scattered(weight, pattern, at, column, inside, sizes, C):
    """The weights at any columns of a step's tile, each found on its own; 0 where not active or `inside`."""
    octet = (column % C.TILE // 8)[None, :]
    tile = at.tile + tl.zeros_like(octet)
    octets, start = load_octets(pattern, tile, at.in_tile[:, None], octet, inside, C.TILE)
    bit = (column % 8)[None, :]
    if C.MASKED:
        row, column = at.row[:, None], column[None, :]
        place = dense_places(weight, row, column, sizes.columns, sizes.channels, sizes.positions)
    else:
        place = weight + start + popcount(octets & ((1 << bit) - 1))
    return tl.load(place, mask=((octets >> bit) & 1) != 0, other=0)


@triton.jit
def load_step(weight, pattern, at, octets, start, channels, sizes, C):
    """The weights (ROWS, COLUMNS) of a step, 0 where not active; `channels` are those left from the first."""
    in_block = tl.arange(0, C.COLUMNS)
    column = at.column + in_block
    if C.ALIGNED:
        inside = at.valid[:, None] & (in_block < C.WIDTH)[None, :]
        tile = at.tile + ((at.column % C.TILE + in_block) // C.TILE)[None, :]
        row, column, columns = at.row[:, None], column[None, :], sizes.columns
        channels, positions = sizes.channels, sizes.positions
        return load_weights(
            weight, pattern, octets, start, tile, row, column, columns, channels, positions, inside, C
        )
    else:
        own = (in_block < tl.minimum(channels, C.WIDTH)) & (column // C.TILE == at.tile_col)
        inside = at.valid[:, None] & own[None, :]
        return load_scattered(weight, pattern, at, column, inside, sizes, C)


@triton.jit
def pixels_of_class(block, rows, columns, window, strides, C):
    """The `Pixels` of a block, counted among those of their class, and what the first taps of the class take
    them to: `FirstTaps`."""
    image, place = first_pixel(block, window, C.SAMPLES)
    pixels = pixels_from(image, place, window, C.SAMPLES)
    row = tl.where(pixels.image < window.images, pixels.row + rows.origin, -(1 << 30))
    column = pixels.column + columns.origin
    return pixels, FirstTaps(places_of_pixels(pixels.image, row, column, strides, C), row, column)


@triton.jit
def pixels_of_input(pixels, rows, columns, taps, images):
    """The input's pixels; those that only larger classes have are put beyond the last image."""
    row = pixels.row * taps.rows.stride + rows.residue
    column = pixels.column * taps.columns.stride + columns.residue
    inside = (row < taps.rows.size) & (column < taps.columns.size)
    return Pixels(tl.where(inside, pixels.image, images), row, column)


@triton.jit
def conv2d_grad_input_kernel(
    grad_y, weight, grad_x, pattern, sizes, window, taps, grad_y_strides, grad_x_strides, part, grid, C
):
    split, block, program = place_of_program(grid.blocks, grid.programs)
    rows = taps_of_class(block % taps.rows.stride, taps.rows)
    block = block // taps.rows.stride
    columns = taps_of_class(block % taps.columns.stride, taps.columns)
    block = block // taps.columns.stride
    pixels, first = pixels_of_class(block, rows, columns, window, grad_y_strides, C)

    group = program // grid.each
    first_channel = program % grid.each * C.WIDTH
    walk = walk_of_class(pattern, rows, columns, first_channel, group * sizes.group_rows, sizes, C)
    begin, end = split_range(walk.total * C.PARTS, split, C.SPLITS)

    acc = tl.zeros((C.COLUMNS, C.SAMPLES) if C.NARROW else (C.SAMPLES, C.COLUMNS), tl.float32)
    octets, start = begin, begin
    if C.ALIGNED:
        octets, start = tile_octets(pattern, step_of_walk(pattern, walk, begin, end, sizes, C), C)
    for i in tl.range(0, end - begin):
        at = step_of_walk(pattern, walk, begin + i, end, sizes, C)
        weights = load_step(weight, pattern, at, octets, start, sizes.channels - first_channel, sizes, C)
        if grad_y.dtype.element_ty == tl.float32:
            # Changes nothing, but Triton fails to lay out float32 operands that come straight from a decode.
            weights = tl.where(at.valid[:, None], weights, 0)
        y_block = load_tap(
            grad_y, first, at.tap_row, at.tap_column, at.row, at.valid, window, grad_y_strides, C
        )
        if C.ALIGNED:
            after = step_of_walk(pattern, walk, begin + i + 1, end, sizes, C)
            octets, start = tile_octets(pattern, after, C)
        if C.NARROW:
            acc = multiply(tl.trans(weights), y_block, acc, C.PRECISION)
        else:
            acc = multiply(y_block, weights, acc, C.PRECISION)

    pixels = pixels_of_input(pixels, rows, columns, taps, window.images)
    channel = first_channel + tl.arange(0, C.COLUMNS)
    valid = (channel < sizes.channels) & (channel < first_channel + C.WIDTH)
    channel += group * sizes.channels
    grad_x += split.to(tl.int64) * part
    store_pixels(grad_x, acc, pixels, window.images, channel, valid, grad_x_strides, C)


def plan(
    grad_y: Tensor, weight: Tensor, index: Any, geometry: tuple[int, ...], grad_x: Tensor, config: Config
) -> Launch:
    """The launch for one problem; `grad_x` has the config's splits as its first dimension, if several."""
    layout = index.layout
    sizes = WeightSizes.of(layout, geometry[6])
    part, result = (grad_x.stride(0), grad_x[0]) if config.splits > 1 else (0, grad_x)
    taps = Taps.of(result.shape, layout.shape, geometry)
    window = Window.of_classes(grad_y, result, taps)
    width, aligned = channel_block(sizes.channels, layout.tile_size, config.group)
    # Channels that begin anywhere in a tile straddle one column of tiles more than those that begin one.
    span = 1 if aligned else (width + layout.tile_size - 2) // layout.tile_size + 1
    constants = Constants.of(index, weight, grad_y.dtype, config)
    constants = constants._replace(
        PRECISION=settled_precision(constants.PRECISION, grad_y.device),
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
    each = triton.cdiv(sizes.channels, width)
    grid = Grid(blocks, each * geometry[6], each)
    arguments = (
        grad_y,
        weight,
        grad_x,
        Sections.of(index),
        sizes,
        window,
        taps,
        Strides(*grad_y.stride()),
        Strides(*result.stride()),
        part,
        grid,
    )
    launched = grid.blocks * grid.programs * config.splits
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
        plan(grad_y, at_least_one(weight), index, geometry, parts, config).run()
        add_parts(parts, grad_x)

    run(choose(*grad_input_configs(grad_y, grad_x, index, geometry), run))
    return grad_x


def grad_input_configs(
    grad_y: Tensor, grad_x: Tensor, index: Any, geometry: tuple[int, ...]
) -> tuple[tuple[Config, ...], Problem]:
    """Configs, and the problem that they are for."""
    layout = index.layout
    channels, tile_size = layout.shape[1], layout.tile_size
    taps = Taps.of(grad_x.shape, layout.shape, geometry)
    pixels = Window.of_classes(grad_y, grad_x, taps).pixels * taps.classes
    outputs = triton.cdiv(channels, channel_block(channels, tile_size, 1)[0]) * geometry[6]
    steps = layout.tile_rows * taps.rows.most_taps * taps.columns.most_taps
    problem = Problem.of("conv2d_grad_input", grad_y, pixels, outputs, steps, index)
    # Two columns of tiles of one program must lie at one tap.
    if channels % (2 * tile_size):
        problem = replace(problem, paired=False)
    return lean(product_configs(problem), problem, aligned=True, vectors=grad_y.stride(1) == 1), problem
