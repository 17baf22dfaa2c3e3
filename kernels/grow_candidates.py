"""`grow_candidates` in Triton: passes over a dense gradient dy^T x that is never stored.

A program computes one block of the gradient in registers and, by the pass, counts the digits of its keys,
counts ties, or writes down what lies above a threshold; see `sparsekern.candidates`. All passes of a call are
one compiled kernel, so a key has the same bits in each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.blocks import load_samples, multiply, place_of_program
from sparsekern.kernels.configs import Config, Problem, dense_configs
from sparsekern.kernels.launch import Launch, Sections, dot_precision
from sparsekern.kernels.tile_decode import active_octets, find_tile, load_octets

COUNT, COUNT_TIES, EMIT = range(3)
# Rows and columns of the gradient that a program computes, in a config's `group` of 1.
BLOCK = 64
# Per call: a kernel compiled anew for every value of them would take longer than it runs.
PASS_ARGUMENTS = ["kind", "prefix", "shift", "bits", "least", "tied_rows", "capacity"]


class GrowConstants(NamedTuple):
    """What the kernel is compiled for.

    Attributes
    ----------
    TILE : int
        Tile size.
    BLOCK : int
        Rows and columns of the gradient that a program computes.
    SAMPLES : int
        Samples of one step.
    COMPLETE : bool
        As in `TileIndex`.
    PRECISION : str
        See `dot_precision`.
    PART : int
        Columns of a block, at most, that are visited together.
    COUNT, COUNT_TIES, EMIT : int
        The names of the passes.
    """

    TILE: int
    BLOCK: int
    SAMPLES: int
    COMPLETE: bool
    PRECISION: str
    PART: int = 32
    COUNT: int = COUNT
    COUNT_TIES: int = COUNT_TIES
    EMIT: int = EMIT


@triton.jit
def is_active(pattern, first_row, first_column, rows, columns, tile_cols, halvings, C):
    """Whether each position of a block is active, (BLOCK, BLOCK); not so outside of the matrix."""
    row = first_row + tl.arange(0, C.BLOCK)[:, None]
    column = first_column + tl.arange(0, C.BLOCK // 8)[None, :] * 8
    valid = (row < rows) & (column < columns)
    tile_row = tl.where(valid, row // C.TILE, 0)
    tile_col = tl.where(valid, column // C.TILE, 0)
    if C.COMPLETE:
        tile = tile_row.to(tl.int64) * tile_cols + tile_col
    else:
        tile = find_tile(pattern, tile_row, tile_col, halvings).to(tl.int64)
        valid = valid & (tile >= 0)
    octets, _ = load_octets(pattern, tile, row % C.TILE, column % C.TILE // 8, valid, C.TILE)
    return active_octets(octets, C.BLOCK, C.BLOCK // 8 * 8)


@triton.jit
def gradient_block(
    grad_y, x, row, column, samples, rows, columns, y_sample, y_feature, x_sample, x_feature, C
):
    """A block (row, column) of dy^T x, 0 outside of the matrix."""
    acc = tl.zeros((C.BLOCK, C.BLOCK), tl.float32)
    in_step = tl.arange(0, C.SAMPLES).to(tl.int64)
    for i in tl.range(0, tl.cdiv(samples, C.SAMPLES)):
        sample = in_step + i * C.SAMPLES
        y_block = load_samples(grad_y, sample, samples, y_sample, row, rows, y_feature, False)
        x_block = load_samples(x, sample, samples, x_sample, column, columns, x_feature, False)
        acc = multiply(tl.trans(y_block), x_block, acc, C.PRECISION)
    return acc


@triton.jit
def count_digits(key, counts, prefix, shift, bits):
    """Adds to the histogram of one digit of the keys that have a prefix above it."""
    counted = (key >= 0) & ((key >> (shift + bits)) == prefix)
    # Zeros, of features that are always off, would queue up for one counter.
    zeros = tl.sum((counted & (key == 0)).to(tl.int32))
    tl.atomic_add(counts, zeros.to(tl.int64), mask=zeros > 0, sem="relaxed")
    place = counts + ((key >> shift) & ((1 << bits) - 1))
    one = tl.full(key.shape, 1, tl.int64)
    tl.atomic_add(place, one, mask=counted & (key != 0), sem="relaxed")


@triton.jit
def emit_chosen(key, chosen, row, column, columns, found, positions, scores, capacity):
    """Writes the positions and scores of a block's chosen keys behind those that others have written."""
    ones = chosen.to(tl.int32)
    in_row = tl.cumsum(ones, 1)
    per_row = tl.sum(ones, 1)
    start = tl.cumsum(per_row, 0) - per_row
    # Of the whole block: the sum of a vector of sums is what Triton 3.7 fails to compile for sm_100.
    first = tl.atomic_add(found, tl.sum(ones).to(tl.int64), sem="relaxed")
    place = start[:, None] + in_row - 1
    written = chosen & (place < capacity - first)
    tl.store(positions + first + place, row.to(tl.int64)[:, None] * columns + column[None, :], mask=written)
    tl.store(scores + first + place, key.to(tl.float32, bitcast=True), mask=written)


@triton.jit
def visit(key, row, rows, first_column, columns, task, counts, positions, scores, C):
    """What a pass does with the keys of a block's columns from `first_column` on."""
    kind, prefix, shift, bits, least, tied_rows, capacity = task
    if kind == C.COUNT:
        count_digits(key, counts, prefix, shift, bits)
    elif kind == C.COUNT_TIES:
        ties = tl.sum((key == least).to(tl.int32), 1).to(tl.int64)
        tl.atomic_add(counts + row, ties, mask=(row < rows) & (ties > 0), sem="relaxed")
    else:
        chosen = (key > least) | ((key == least) & (row < tied_rows)[:, None])
        column = first_column + tl.arange(0, key.shape[1])
        emit_chosen(key, chosen, row, column, columns, counts, positions, scores, capacity)


@triton.jit
def visit_halves(key, row, rows, first_column, columns, task, counts, positions, scores, C):
    """`visit` for a block in two parts: the addresses of a whole one would not fit the registers."""
    WIDTH: tl.constexpr = key.shape[1]
    left, right = tl.split(tl.permute(tl.reshape(key, (C.BLOCK, 2, WIDTH // 2)), (0, 2, 1)))
    if WIDTH // 2 > C.PART:
        visit_halves(left, row, rows, first_column, columns, task, counts, positions, scores, C)
        visit_halves(right, row, rows, first_column + WIDTH // 2, columns, task, counts, positions, scores, C)
    else:
        visit(left, row, rows, first_column, columns, task, counts, positions, scores, C)
        visit(right, row, rows, first_column + WIDTH // 2, columns, task, counts, positions, scores, C)


@triton.jit(do_not_specialize=PASS_ARGUMENTS)
def grow_candidates_kernel(
    grad_y,
    x,
    pattern,
    counts,
    positions,
    scores,
    kind,
    prefix,
    shift,
    bits,
    least,
    tied_rows,
    capacity,
    samples,
    rows,
    columns,
    tile_cols,
    halvings,
    y_sample,
    y_feature,
    x_sample,
    x_feature,
    C,
):
    _, row_block, column_block = place_of_program(tl.cdiv(rows, C.BLOCK), tl.cdiv(columns, C.BLOCK))
    first_row = row_block * C.BLOCK
    first_column = column_block * C.BLOCK
    row = first_row + tl.arange(0, C.BLOCK)
    column = first_column + tl.arange(0, C.BLOCK)
    acc = gradient_block(
        grad_y, x, row, column, samples, rows, columns, y_sample, y_feature, x_sample, x_feature, C
    )
    key = acc.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    key = tl.where(key > 0x7F800000, 0x7FC00000, key)
    active = is_active(pattern, first_row, first_column, rows, columns, tile_cols, halvings, C)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    key = tl.where(active | (inside == 0), -1, key)
    task = (kind, prefix, shift, bits, least, tied_rows, capacity)
    visit_halves(key, row, rows, first_column, columns, task, counts, positions, scores, C)


def problem_of(x: Tensor, index: Any) -> Problem:
    """What the choice of a config depends on."""
    layout = index.layout
    blocks = triton.cdiv(layout.rows, BLOCK) * triton.cdiv(layout.cols, BLOCK)
    return Problem.of("grow_candidates", x, x.shape[0], blocks, 0, index)


class Passes:
    """The passes over one problem, as `sparsekern.candidates.largest` takes them.

    Parameters
    ----------
    grad_y, x : Tensor
        ``(samples, rows)`` and ``(samples, columns)``, of any strides; float32, bfloat16 or float16.
    index : TileIndex
        Of the weight's pattern.
    config : Config, optional
        By default the best guess for the problem.
    """

    dtype = torch.float32

    def __init__(self, grad_y: Tensor, x: Tensor, index: Any, config: Config | None = None) -> None:
        self._grad_y, self._x, self._index = grad_y, x, index
        self._config = dense_configs(problem_of(x, index))[0] if config is None else config
        self.device = x.device
        self.shape = (index.layout.rows, index.layout.cols)

    def count(self, prefix: int, shift: int, bits: int) -> Tensor:
        counts = self._counters(1 << bits)
        self.plan(COUNT, counts, prefix=prefix, shift=shift, bits=bits).run()
        return counts.cpu()

    def count_ties(self, key: int) -> Tensor:
        counts = self._counters(self.shape[0])
        self.plan(COUNT_TIES, counts, least=key).run()
        return counts.cpu()

    def emit(self, least: int, tied_rows: int, positions: Tensor, scores: Tensor) -> int:
        counts = self._counters(1)
        self.plan(EMIT, counts, positions, scores, least=least, tied_rows=tied_rows).run()
        return int(counts)

    def plan(
        self,
        kind: int,
        counts: Tensor,
        positions: Tensor | None = None,
        scores: Tensor | None = None,
        *,
        prefix: int = 0,
        shift: int = 0,
        bits: int = 1,
        least: int = 0,
        tied_rows: int = 0,
    ) -> Launch:
        """The launch of one pass."""
        layout, (rows, columns) = self._index.layout, self.shape
        config, block = self._config, BLOCK * self._config.group
        if positions is None or scores is None:
            # The same types in every pass, or each would be compiled on its own.
            positions, scores = counts, counts.view(torch.float32)
        constants = GrowConstants(
            TILE=layout.tile_size,
            BLOCK=block,
            SAMPLES=config.samples,
            COMPLETE=self._index.complete,
            PRECISION=dot_precision(self._x.dtype),
        )
        arguments = (
            self._grad_y,
            self._x,
            Sections.of(self._index),
            counts,
            positions,
            scores,
            kind,
            prefix,
            shift,
            bits,
            least,
            tied_rows,
            positions.numel(),
            self._x.shape[0],
            rows,
            columns,
            layout.tile_cols,
            layout.tile_cols.bit_length(),
            *self._grad_y.stride(),
            *self._x.stride(),
        )
        programs = triton.cdiv(rows, block) * triton.cdiv(columns, block)
        return Launch(grow_candidates_kernel, programs, arguments, constants, config.warps, config.stages)

    def _counters(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=self.device)
