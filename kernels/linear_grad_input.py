"""`linear_grad_input` in Triton: dx = dy W, the gradient of `linear` with respect to x.

The same walk as in `linear`, along a column of tiles (or two that hold tiles in the same rows) by the index
of the transpose; the tiles themselves are read as they are.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.blocks import load_samples, multiply, place_of_program, split_range, store_samples
from sparsekern.kernels.configs import Config, Problem, padded, product_configs
from sparsekern.kernels.launch import Constants, Launch, Sections, add_parts, split_parts
from sparsekern.kernels.tile_decode import decode_octets, load_octets, load_weights, tile_row_of
from sparsekern.kernels.tuning import choose


@triton.jit
def tile_of_column(pattern, first, second, part, step, end, tile_cols, group, C):
    """The tiles of one step along a group of columns of tiles, by the half (0 or 1) of the group: int64."""
    at = step // C.PARTS
    if C.COMPLETE:
        return at.to(tl.int64) * tile_cols + group * C.GROUP + part
    begin = tl.where(part == 0, first, second)
    return tl.load(pattern.tile_order_t + begin + at, mask=step < end, other=0).to(tl.int64)


@triton.jit
def column_octets(pattern, tile, place, step, end, valid, C):
    """The octets of one step along a column of tiles; `tile` and `valid` are by octet."""
    row = step % C.PARTS * C.ROWS + place[:, None]
    octet = tl.arange(0, C.COLUMNS // 8)[None, :] % (C.TILE // 8)
    valid = valid[None, :] & (place < C.TILE)[:, None] & (step < end)
    return load_octets(pattern, tile[None, :], row, octet, valid, C.TILE)


@triton.jit
def linear_grad_input_kernel(
    grad_y, weight, grad_x, pattern, samples, rows, columns, tile_cols, y_sample, y_feature, C
):
    blocks = tl.cdiv(samples, C.SAMPLES)
    split, block, group = place_of_program(blocks, tl.cdiv(tile_cols, C.GROUP))
    sample = block.to(tl.int64) * C.SAMPLES + tl.arange(0, C.SAMPLES)
    place = tl.arange(0, C.ROWS)
    in_group = tl.arange(0, C.COLUMNS)
    column = group * (C.GROUP * C.TILE) + in_group
    valid = (in_group < C.GROUP * C.TILE) & (column < columns)
    octet = tl.arange(0, C.COLUMNS // 8)
    part = octet // (C.TILE // 8)
    octet_valid = (part < C.GROUP) & (group * C.GROUP + part < tile_cols)

    first = tl.load(pattern.tile_ptr_t + group * C.GROUP)
    second = tl.load(pattern.tile_ptr_t + group * C.GROUP + 1)
    begin, end = split_range((second - first) * C.PARTS, split, C.SPLITS)

    acc = tl.zeros((C.COLUMNS, C.SAMPLES) if C.NARROW else (C.SAMPLES, C.COLUMNS), tl.float32)
    tile = tile_of_column(pattern, first, second, part, begin, end, tile_cols, group, C)
    octets, start = column_octets(pattern, tile, place, begin, end, octet_valid, C)
    if C.PREFETCH:
        fetched = decode_octets(weight, octets, start, C.ROWS, C.COLUMNS)
        tile = tile_of_column(pattern, first, second, part, begin + 1, end, tile_cols, group, C)
        octets, start = column_octets(pattern, tile, place, begin + 1, end, octet_valid, C)
    for i in tl.range(0, end - begin):
        step = begin + i
        leader = tile_of_column(pattern, first, second, 0, step, end, tile_cols, group, C)
        row = tile_row_of(pattern, leader, tile_cols, C) * C.TILE
        row += step % C.PARTS * C.ROWS + place
        if C.TILE < C.ROWS:
            # A padded block must not read the features of the next tile, which may be NaN.
            row = tl.where(place < C.TILE, row, rows)
        inside = valid[None, :] & (row < rows)[:, None]
        if C.PREFETCH:
            weights = fetched
            fetched = decode_octets(weight, octets, start, C.ROWS, C.COLUMNS)
        else:
            at = tile_of_column(pattern, first, second, in_group // C.TILE, step, end, tile_cols, group, C)
            weights = load_weights(
                weight,
                pattern,
                octets,
                start,
                at[None, :],
                row[:, None],
                column[None, :],
                columns,
                columns,
                1,
                inside,
                C,
            )
        if grad_y.dtype.element_ty == tl.float32:
            # Changes nothing, but Triton fails to lay out float32 operands that come straight from a decode.
            weights = tl.where(inside, weights, 0)
        ahead = step + 1 + C.PREFETCH
        tile = tile_of_column(pattern, first, second, part, ahead, end, tile_cols, group, C)
        octets, start = column_octets(pattern, tile, place, ahead, end, octet_valid, C)
        y_block = load_samples(grad_y, sample, samples, y_sample, row, rows, y_feature, C.NARROW)
        if C.NARROW:
            acc = multiply(tl.trans(weights), y_block, acc, C.PRECISION)
        else:
            acc = multiply(y_block, weights, acc, C.PRECISION)
    grad_x += split.to(tl.int64) * samples * columns
    store_samples(grad_x, acc, sample, samples, column, valid, columns, C.NARROW)


def plan(grad_y: Tensor, weight: Tensor, index: Any, grad_x: Tensor, config: Config) -> Launch:
    """The launch for one problem; of several splits, each has its part of `grad_x`."""
    layout = index.layout
    blocks = triton.cdiv(grad_y.shape[0], config.samples) * triton.cdiv(layout.tile_cols, config.group)
    constants = Constants.of(index, weight, grad_y.dtype, config)._replace(
        ROWS=min(padded(layout.tile_size), config.depth), COLUMNS=padded(layout.tile_size * config.group)
    )
    arguments = (
        grad_y,
        weight,
        grad_x,
        Sections.of(index),
        grad_y.shape[0],
        layout.rows,
        layout.cols,
        layout.tile_cols,
        *grad_y.stride(),
    )
    return Launch(
        linear_grad_input_kernel, blocks * config.splits, arguments, constants, config.warps, config.stages
    )


def linear_grad_input(grad_y: Tensor, weight: Tensor, index: Any) -> Tensor:
    """``grad_y @ W`` of a 2-D grad_y of any strides.

    Parameters
    ----------
    grad_y : Tensor
        ``(samples, rows)``.
    weight, index :
        As in `linear`.

    Returns
    -------
    Tensor
        ``(samples, columns)``, contiguous; sums are in float32.
    """
    layout = index.layout
    grad_x = grad_y.new_empty(grad_y.shape[0], layout.cols)

    def run(config: Config) -> None:
        parts = split_parts(grad_x, config.splits)
        plan(grad_y, weight, index, parts, config).run()
        add_parts(parts, grad_x)

    problem = Problem.of(
        "linear_grad_input", grad_y, grad_y.shape[0], layout.tile_cols, layout.tile_rows, index
    )
    run(choose(product_configs(problem), problem, run))
    return grad_x
