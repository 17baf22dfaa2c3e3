"""`linear_grad_values` in Triton: dy^T x at the active positions, the gradient of `linear` with respect to W.

A program owns a stored tile, or the 2 x 2 tiles of a group, sums over the samples as if the tiles were dense,
and stores what is active. Nothing dense is ever in memory.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.blocks import load_samples, multiply, split_range
from sparsekern.kernels.configs import Config, Problem, padded, sum_configs
from sparsekern.kernels.launch import Constants, Launch, Sections, add_parts, split_parts
from sparsekern.kernels.tile_decode import store_gradients, tile_row_of
from sparsekern.kernels.tuning import choose


@triton.jit
def linear_grad_values_kernel(
    grad_y,
    x,
    grad,
    pattern,
    samples,
    rows,
    columns,
    tiles,
    tile_cols,
    stored,
    y_sample,
    y_feature,
    x_sample,
    x_feature,
    C,
):
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles
    tile_row = tile_row_of(pattern, tile, tile_cols, C)
    tile_col = tl.load(pattern.tile_col + tile)
    if C.GROUP == 2:
        # The first tile of a group speaks for all four.
        if tile_row % 2 + tile_col % 2 > 0:
            return
    row_place = tl.arange(0, C.ROWS)
    column_place = tl.arange(0, C.COLUMNS)
    row = tile_row * C.TILE + row_place
    column = tile_col * C.TILE + column_place
    if C.GROUP * C.TILE < C.ROWS:
        # A padded block must not count the features of the next tile.
        row = tl.where(row_place < C.GROUP * C.TILE, row, rows)
        column = tl.where(column_place < C.GROUP * C.TILE, column, columns)

    begin, end = split_range(tl.cdiv(samples, C.SAMPLES), split, C.SPLITS)
    acc = tl.zeros((C.ROWS, C.COLUMNS), tl.float32)
    for i in tl.range(0, end - begin):
        sample = (begin + i).to(tl.int64) * C.SAMPLES + tl.arange(0, C.SAMPLES)
        y_block = load_samples(grad_y, sample, samples, y_sample, row, rows, y_feature, False)
        x_block = load_samples(x, sample, samples, x_sample, column, columns, x_feature, False)
        acc = multiply(tl.trans(y_block), x_block, acc, C.PRECISION)
    grad += split.to(tl.int64) * stored
    store_gradients(grad, acc, pattern, tile, tile_row, tile_col, row, rows, column, columns, columns, 1, C)


def plan(grad_y: Tensor, x: Tensor, index: Any, grad: Tensor, masked: bool, config: Config) -> Launch:
    """The launch for one problem; of several splits, each has its part of `grad`."""
    layout = index.layout
    constants = Constants.of(index, grad, x.dtype, config)._replace(
        MASKED=masked,
        ROWS=padded(layout.tile_size * config.group),
        COLUMNS=padded(layout.tile_size * config.group),
    )
    arguments = (
        grad_y,
        x,
        grad,
        Sections.of(index),
        x.shape[0],
        layout.rows,
        layout.cols,
        layout.tiles,
        layout.tile_cols,
        layout.rows * layout.cols if masked else layout.nnz,
        *grad_y.stride(),
        *x.stride(),
    )
    programs = layout.tiles * config.splits
    return Launch(linear_grad_values_kernel, programs, arguments, constants, config.warps, config.stages)


def linear_grad_values(grad_y: Tensor, x: Tensor, index: Any, masked: bool) -> Tensor:
    """``(grad_y.T @ x)[active]`` of 2-D tensors of any strides.

    Parameters
    ----------
    grad_y : Tensor
        ``(samples, rows)``.
    x : Tensor
        ``(samples, columns)``, of the same dtype.
    index : TileIndex
        Of the weight's pattern.
    masked : bool
        Return the gradient of a dense weight, 0 at inactive positions.

    Returns
    -------
    Tensor
        ``(nnz,)``, or ``(rows, columns)``; sums are in float32.
    """
    layout = index.layout
    grad = x.new_zeros(layout.rows, layout.cols) if masked else x.new_empty(layout.nnz)

    def run(config: Config) -> None:
        parts = split_parts(grad, config.splits, zeroed=masked)
        plan(grad_y, x, index, parts, masked, config).run()
        add_parts(parts, grad)

    problem = Problem.of("linear_grad_values", x, x.shape[0], layout.tiles, 0, index)
    run(choose(sum_configs(problem), problem, run))
    return grad
