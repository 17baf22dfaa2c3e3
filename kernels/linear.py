"""`linear` in Triton: y = x W^T + b.

A program owns a block of samples and a row of tiles, or two that hold tiles in the same columns, and walks
along it. While the product of one step runs, the inputs of the next are on their way.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.blocks import load_samples, multiply, place_of_program, split_range, store_samples
from sparsekern.kernels.configs import Config, Problem, padded, product_configs
from sparsekern.kernels.launch import Constants, Launch, Sections, add_parts, split_parts
from sparsekern.kernels.tile_decode import decode_octets, load_octets, load_weights
from sparsekern.kernels.tuning import choose


@triton.jit
def row_octets(pattern, tile, place, step, end, valid, C):
    """The octets of one step along a row of tiles; `tile` is the first tile of each place (row)."""
    octet = step % C.PARTS * (C.COLUMNS // 8) + tl.arange(0, C.COLUMNS // 8)[None, :]
    valid = valid[:, None] & (octet < C.TILE // 8) & (step < end)
    return load_octets(
        pattern, tile[:, None] + step // C.PARTS, (place % C.TILE)[:, None], octet, valid, C.TILE
    )


@triton.jit
def column_of(pattern, first, step, C):
    """The first column of one step along a row of tiles."""
    column = step // C.PARTS
    if not C.COMPLETE:
        column = tl.load(pattern.tile_col + first + column)
    return column * C.TILE + step % C.PARTS * C.COLUMNS


@triton.jit
def linear_kernel(x, weight, bias, y, pattern, samples, rows, columns, tile_rows, x_sample, x_feature, C):
    blocks = tl.cdiv(samples, C.SAMPLES)
    split, block, group = place_of_program(blocks, tl.cdiv(tile_rows, C.GROUP))
    sample = block.to(tl.int64) * C.SAMPLES + tl.arange(0, C.SAMPLES)
    place = tl.arange(0, C.ROWS)
    row = group * (C.GROUP * C.TILE) + place
    valid = (place < C.GROUP * C.TILE) & (row < rows)
    in_step = tl.arange(0, C.COLUMNS)

    first = tl.load(pattern.tile_row_ptr + group * C.GROUP)
    tiles = tl.load(pattern.tile_row_ptr + group * C.GROUP + 1) - first
    tile = tl.where(place < C.TILE, first, first + tiles).to(tl.int64)
    begin, end = split_range(tiles * C.PARTS, split, C.SPLITS)

    acc = tl.zeros((C.ROWS, C.SAMPLES) if C.NARROW else (C.SAMPLES, C.ROWS), tl.float32)
    octets, start = row_octets(pattern, tile, place, begin, end, valid, C)
    if C.PREFETCH:
        fetched = decode_octets(weight, octets, start, C.ROWS, C.COLUMNS)
        octets, start = row_octets(pattern, tile, place, begin + 1, end, valid, C)
    for i in tl.range(0, end - begin):
        step = begin + i
        column = column_of(pattern, first, step, C) + in_step
        if C.TILE < C.COLUMNS:
            # A padded block must not read the features of the next tile, which may be NaN.
            column = tl.where(in_step < C.TILE, column, columns)
        if C.PREFETCH:
            weights = fetched
            fetched = decode_octets(weight, octets, start, C.ROWS, C.COLUMNS)
        else:
            at = tile[:, None] + step // C.PARTS
            inside = valid[:, None] & (column < columns)[None, :]
            weights = load_weights(
                weight,
                pattern,
                octets,
                start,
                at,
                row[:, None],
                column[None, :],
                columns,
                columns,
                1,
                inside,
                C,
            )
        octets, start = row_octets(pattern, tile, place, step + 1 + C.PREFETCH, end, valid, C)
        x_block = load_samples(x, sample, samples, x_sample, column, columns, x_feature, C.NARROW)
        if C.NARROW:
            acc = multiply(weights, x_block, acc, C.PRECISION)
        else:
            acc = multiply(x_block, tl.trans(weights), acc, C.PRECISION)

    if C.HAS_BIAS:
        bias_block = tl.load(bias + row, mask=valid, other=0).to(tl.float32)
        acc += bias_block[:, None] if C.NARROW else bias_block[None, :]
    store_samples(y + split.to(tl.int64) * samples * rows, acc, sample, samples, row, valid, rows, C.NARROW)


def plan(x: Tensor, weight: Tensor, bias: Tensor | None, index: Any, y: Tensor, config: Config) -> Launch:
    """The launch for one problem; of several splits, each has its part of `y`."""
    layout = index.layout
    blocks = triton.cdiv(x.shape[0], config.samples) * triton.cdiv(layout.tile_rows, config.group)
    depth = min(padded(layout.tile_size), config.depth)
    bias = bias if config.splits == 1 else None
    constants = Constants.of(index, weight, x.dtype, config)._replace(
        ROWS=padded(layout.tile_size * config.group), COLUMNS=depth, HAS_BIAS=bias is not None
    )
    arguments = (
        x,
        weight,
        bias,
        y,
        Sections.of(index),
        x.shape[0],
        layout.rows,
        layout.cols,
        layout.tile_rows,
        *x.stride(),
    )
    return Launch(linear_kernel, blocks * config.splits, arguments, constants, config.warps, config.stages)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, index: Any) -> Tensor:
    """``F.linear(x, W, bias)`` of a 2-D x of any strides.

    Parameters
    ----------
    x : Tensor
        ``(samples, columns)``, float32, bfloat16 or float16.
    weight : Tensor
        ``(nnz,)``, or dense ``(rows, columns)`` and contiguous; of x's dtype and device, as `bias`.
    bias : Tensor or None
        ``(rows,)``.
    index : TileIndex
        Of the weight's pattern.

    Returns
    -------
    Tensor
        ``(samples, rows)``, contiguous; sums are in float32.
    """
    layout = index.layout
    y = x.new_empty(x.shape[0], layout.rows)

    def run(config: Config) -> None:
        parts = split_parts(y, config.splits)
        plan(x, weight, bias, index, parts, config).run()
        add_parts(parts, y, bias)

    problem = Problem.of("linear", x, x.shape[0], layout.tile_rows, layout.tile_cols, index)
    run(choose(product_configs(problem), problem, run))
    return y
