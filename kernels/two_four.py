"""Products of a 2:4 weight in Triton, from its packing by rows: `two_four_linear` and its gradients.

They are dense products whose weight block is made on chip, so that the weight is read in little more than
half of its bytes, which decides for few samples. Matrix instructions on 2:4 operands are out of Triton's
reach; for many samples PyTorch's own ops, which have them, are the better choice where they take the sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.blocks import load_samples, multiply, place_of_program, split_range, store_samples
from sparsekern.kernels.configs import Config, Problem, device_limits, product_configs, sum_configs
from sparsekern.kernels.launch import Launch, add_parts, dot_precision, split_parts
from sparsekern.kernels.tuning import choose

# Rows and columns of a block of the weight; a config may double one of them, or both.
SIDE = 64
# Two weights of a group, as one word.
PAIRS = {2: torch.int32, 4: torch.int64}


class Constants(NamedTuple):
    """What a kernel is compiled for, beside the types of its arguments.

    Attributes
    ----------
    ROWS, COLUMNS : int
        The block of the weight of one step, or of the gradient that a program owns.
    SAMPLES, SPLITS, NARROW :
        As in `Config`.
    HAS_BIAS : bool
    PRECISION : str
        See `dot_precision`.
    """

    ROWS: int
    COLUMNS: int
    SAMPLES: int
    SPLITS: int
    NARROW: bool
    HAS_BIAS: bool
    PRECISION: str


@triton.jit
def load_nibbles(metadata, line, group, columns, inside):
    """The nibbles of a block (row, group); the rows are int64."""
    byte = line[:, None] * tl.cdiv(columns, 8) + group[None, :] // 2
    return tl.load(metadata + byte, mask=inside, other=0).to(tl.int32) >> (group % 2 * 4)[None, :] & 15


@triton.jit
def load_groups(pairs, metadata, row, rows, column, columns, valid, C):
    """The kept pairs, each as one word, and the nibbles of a block (row, group).

    They are 0 outside of the matrix, and if not `valid`. `row` and `column` are the block's first.
    """
    group = column // 4 + tl.arange(0, C.COLUMNS // 4)
    line = row.to(tl.int64) + tl.arange(0, C.ROWS)
    inside = valid & (line < rows)[:, None] & (group < columns // 4)[None, :]
    words = tl.load(pairs + line[:, None] * (columns // 4) + group[None, :], mask=inside, other=0)
    return words, load_nibbles(metadata, line, group, columns, inside)


@triton.jit
def expand_groups(words, nibbles, dtype: tl.constexpr, C):
    """The weights (ROWS, COLUMNS) of a block of groups.

    They are words until they are in place: Triton 3.6 fails on float operands that come straight from a
    reshape, as later versions do on float32, and takes what is reinterpreted after it.
    """
    if dtype == tl.float32:
        first = words.to(tl.int32)
        second = (words >> 32).to(tl.int32)
    else:
        first = words.to(tl.int16)
        second = (words >> 16).to(tl.int16)
    i, j = nibbles & 3, nibbles >> 2
    w0 = tl.where(i == 0, first, 0)
    w1 = tl.where(i == 1, first, tl.where(j == 1, second, 0))
    w2 = tl.where(i == 2, first, tl.where(j == 2, second, 0))
    w3 = tl.where(j == 3, second, 0)
    block = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (C.ROWS, C.COLUMNS))
    return block.to(dtype, bitcast=True)


@triton.jit
def store_kept(grad, block, metadata, row, rows, column, columns, C):
    """Writes what is kept of a block (ROWS, COLUMNS) whose first row and column are given."""
    group = column // 4 + tl.arange(0, C.COLUMNS // 4)
    line = row.to(tl.int64) + tl.arange(0, C.ROWS)
    inside = (line < rows)[:, None] & (group < columns // 4)[None, :]
    nibbles = load_nibbles(metadata, line, group, columns, inside)
    i, j = nibbles & 3, nibbles >> 2
    even, odd = tl.split(tl.reshape(block, (C.ROWS, C.COLUMNS // 4, 2, 2)))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    first = tl.where(i == 0, w0, tl.where(i == 1, w1, w2))
    second = tl.where(j == 3, w3, tl.where(j == 2, w2, w1))
    kept = tl.reshape(tl.join(first, second), (C.ROWS, C.COLUMNS // 2)).to(grad.dtype.element_ty)
    value = column // 2 + tl.arange(0, C.COLUMNS // 2)
    inside = (line < rows)[:, None] & (value < columns // 2)[None, :]
    tl.store(grad + line[:, None] * (columns // 2) + value[None, :], kept, mask=inside)


@triton.jit
def two_four_linear_kernel(x, pairs, metadata, bias, y, samples, rows, columns, x_sample, x_feature, C):
    blocks = tl.cdiv(samples, C.SAMPLES)
    split, block, part = place_of_program(blocks, tl.cdiv(rows, C.ROWS))
    sample = block.to(tl.int64) * C.SAMPLES + tl.arange(0, C.SAMPLES)
    first = part * C.ROWS
    begin, end = split_range(tl.cdiv(columns, C.COLUMNS), split, C.SPLITS)

    acc = tl.zeros((C.ROWS, C.SAMPLES) if C.NARROW else (C.SAMPLES, C.ROWS), tl.float32)
    words, nibbles = load_groups(pairs, metadata, first, rows, begin * C.COLUMNS, columns, begin < end, C)
    for i in tl.range(0, end - begin):
        column = (begin + i) * C.COLUMNS
        weights = expand_groups(words, nibbles, x.dtype.element_ty, C)
        # Those of the next step, on their way while the product of this one runs.
        ahead = begin + i + 1 < end
        words, nibbles = load_groups(pairs, metadata, first, rows, column + C.COLUMNS, columns, ahead, C)
        feature = column + tl.arange(0, C.COLUMNS)
        x_block = load_samples(x, sample, samples, x_sample, feature, columns, x_feature, C.NARROW)
        if C.NARROW:
            acc = multiply(weights, x_block, acc, C.PRECISION)
        else:
            acc = multiply(x_block, tl.trans(weights), acc, C.PRECISION)

    row = first + tl.arange(0, C.ROWS)
    if C.HAS_BIAS:
        bias_block = tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)
        acc += bias_block[:, None] if C.NARROW else bias_block[None, :]
    y += split.to(tl.int64) * samples * rows
    store_samples(y, acc, sample, samples, row, row < rows, rows, C.NARROW)


@triton.jit
def two_four_linear_grad_input_kernel(
    grad_y, pairs, metadata, grad_x, samples, rows, columns, y_sample, y_feature, C
):
    blocks = tl.cdiv(samples, C.SAMPLES)
    split, block, part = place_of_program(blocks, tl.cdiv(columns, C.COLUMNS))
    sample = block.to(tl.int64) * C.SAMPLES + tl.arange(0, C.SAMPLES)
    first = part * C.COLUMNS
    begin, end = split_range(tl.cdiv(rows, C.ROWS), split, C.SPLITS)

    acc = tl.zeros((C.COLUMNS, C.SAMPLES) if C.NARROW else (C.SAMPLES, C.COLUMNS), tl.float32)
    words, nibbles = load_groups(pairs, metadata, begin * C.ROWS, rows, first, columns, begin < end, C)
    for i in tl.range(0, end - begin):
        above = (begin + i) * C.ROWS
        row = above + tl.arange(0, C.ROWS)
        weights = expand_groups(words, nibbles, grad_y.dtype.element_ty, C)
        ahead = begin + i + 1 < end
        words, nibbles = load_groups(pairs, metadata, above + C.ROWS, rows, first, columns, ahead, C)
        y_block = load_samples(grad_y, sample, samples, y_sample, row, rows, y_feature, C.NARROW)
        if C.NARROW:
            acc = multiply(tl.trans(weights), y_block, acc, C.PRECISION)
        else:
            acc = multiply(y_block, weights, acc, C.PRECISION)

    column = first + tl.arange(0, C.COLUMNS)
    grad_x += split.to(tl.int64) * samples * columns
    store_samples(grad_x, acc, sample, samples, column, column < columns, columns, C.NARROW)


@triton.jit
def two_four_linear_grad_values_kernel(
    grad_y, x, metadata, grad, samples, rows, columns, y_sample, y_feature, x_sample, x_feature, C
):
    across = tl.cdiv(columns, C.COLUMNS)
    blocks = tl.cdiv(rows, C.ROWS) * across
    split = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    first_row = block // across * C.ROWS
    first_column = block % across * C.COLUMNS
    row = first_row + tl.arange(0, C.ROWS)
    column = first_column + tl.arange(0, C.COLUMNS)
    begin, end = split_range(tl.cdiv(samples, C.SAMPLES), split, C.SPLITS)
    acc = tl.zeros((C.ROWS, C.COLUMNS), tl.float32)
    for i in tl.range(0, end - begin):
        sample = (begin + i).to(tl.int64) * C.SAMPLES + tl.arange(0, C.SAMPLES)
        y_block = load_samples(grad_y, sample, samples, y_sample, row, rows, y_feature, False)
        x_block = load_samples(x, sample, samples, x_sample, column, columns, x_feature, False)
        acc = multiply(tl.trans(y_block), x_block, acc, C.PRECISION)
    grad += split.to(tl.int64) * rows * (columns // 2)
    store_kept(grad, acc, metadata, first_row, rows, first_column, columns, C)


def _constants(x: Tensor, config: Config, rows: int, columns: int, has_bias: bool = False) -> Constants:
    return Constants(
        ROWS=rows,
        COLUMNS=columns,
        SAMPLES=config.samples,
        SPLITS=config.splits,
        NARROW=config.narrow,
        HAS_BIAS=has_bias,
        PRECISION=dot_precision(x.dtype),
    )


def problem_of(op: str, x: Tensor, outputs: int, steps: int) -> Problem:
    """The problem of a product that has `outputs` features, each a sum over `steps`."""
    limits = device_limits(x.device)
    blocks = triton.cdiv(outputs, SIDE), triton.cdiv(steps, SIDE)
    return Problem(
        op, x.shape[0], *blocks, SIDE, x.element_size(), dot_precision(x.dtype), True, True, False, *limits
    )


def configs_of(problem: Problem) -> tuple[Config, ...]:
    """As `product_configs`, less those of sixteen warps on Blackwell.

    Triton gives these the older matrix instructions there, whose operands do not fit the registers.
    """
    configs = product_configs(problem)
    return tuple(config for config in configs if config.warps <= 8 or problem.capability < 100)


def _outputs(config: Config, x: Tensor) -> int:
    """Output features of a block of the weight.

    Triton computes blocks of 64 of them in TF32 on data-centre Blackwell, whatever precision is asked for.
    """
    on_blackwell = device_limits(x.device)[0] // 10 in (10, 11)
    halved = config.narrow and on_blackwell and dot_precision(x.dtype) == "ieee"
    return SIDE // 2 if halved else SIDE * config.group


def _pairs(values: Tensor) -> Tensor:
    """Kept weights by two, the address a multiple of their size."""
    if values.data_ptr() % (2 * values.element_size()):
        values = values.clone()
    return values.view(PAIRS[values.element_size()])


def plan_linear(
    x: Tensor, values: Tensor, metadata: Tensor, bias: Tensor | None, y: Tensor, config: Config
) -> Launch:
    """The launch of `two_four_linear`; of several splits, each has its part of `y`."""
    (samples, columns), rows = x.shape, values.shape[0]
    bias = bias if config.splits == 1 else None
    constants = _constants(x, config, _outputs(config, x), min(SIDE, config.depth), bias is not None)
    arguments = (x, _pairs(values), metadata, bias, y, samples, rows, columns, *x.stride())
    programs = triton.cdiv(samples, config.samples) * triton.cdiv(rows, constants.ROWS) * config.splits
    return Launch(two_four_linear_kernel, programs, arguments, constants, config.warps, config.stages)


def plan_grad_input(
    grad_y: Tensor, values: Tensor, metadata: Tensor, grad_x: Tensor, config: Config
) -> Launch:
    """The launch of `two_four_linear_grad_input`, as `plan_linear`."""
    (samples, rows), columns = grad_y.shape, 2 * values.shape[1]
    constants = _constants(grad_y, config, min(SIDE, config.depth), _outputs(config, grad_y))
    arguments = (grad_y, _pairs(values), metadata, grad_x, samples, rows, columns, *grad_y.stride())
    blocks = triton.cdiv(samples, config.samples) * triton.cdiv(columns, constants.COLUMNS)
    kernel = two_four_linear_grad_input_kernel
    return Launch(kernel, blocks * config.splits, arguments, constants, config.warps, config.stages)


def plan_grad_values(grad_y: Tensor, x: Tensor, metadata: Tensor, grad: Tensor, config: Config) -> Launch:
    """The launch of `two_four_linear_grad_values`, as `plan_linear`."""
    (samples, rows), columns = grad_y.shape, x.shape[1]
    side = SIDE * config.group
    constants = _constants(x, config, side, side)
    arguments = (grad_y, x, metadata, grad, samples, rows, columns, *grad_y.stride(), *x.stride())
    programs = triton.cdiv(rows, side) * triton.cdiv(columns, side) * config.splits
    kernel = two_four_linear_grad_values_kernel
    return Launch(kernel, programs, arguments, constants, config.warps, config.stages)


def _run(
    plan: Callable[[Tensor, Config], Launch],
    result: Tensor,
    bias: Tensor | None,
    problem: Problem,
    configs: Callable[[Problem], tuple[Config, ...]],
) -> Tensor:
    """Fills `result` in the way that is fastest, or may well be."""

    def run(config: Config) -> None:
        parts = split_parts(result, config.splits)
        plan(parts, config).run()
        add_parts(parts, result, bias)

    run(choose(configs(problem), problem, run))
    return result


def two_four_linear(x: Tensor, values: Tensor, bias: Tensor | None, metadata: Tensor) -> Tensor:
    """``F.linear(x, W, bias)`` of a 2-D x of any strides.

    Parameters
    ----------
    x : Tensor
        ``(samples, K)``, float32, bfloat16 or float16.
    values : Tensor
        ``(N, K/2)``, contiguous, of x's dtype and device, as `bias`.
    bias : Tensor or None
        ``(N,)``.
    metadata : Tensor
        uint8 ``(N, ceil(K/8))``, contiguous.

    Returns
    -------
    Tensor
        ``(samples, N)``, contiguous; sums are in float32.
    """
    y = x.new_empty(x.shape[0], values.shape[0])
    problem = problem_of("two_four_linear", x, values.shape[0], x.shape[1])
    return _run(
        lambda to, config: plan_linear(x, values, metadata, bias, to, config), y, bias, problem, configs_of
    )


def two_four_linear_grad_input(grad_y: Tensor, values: Tensor, metadata: Tensor) -> Tensor:
    """``grad_y @ W``, ``(samples, K)``, of a 2-D grad_y of any strides; see `two_four_linear`."""
    columns = 2 * values.shape[1]
    grad_x = grad_y.new_empty(grad_y.shape[0], columns)
    problem = problem_of("two_four_linear_grad_input", grad_y, columns, grad_y.shape[1])

    def plan(to: Tensor, config: Config) -> Launch:
        return plan_grad_input(grad_y, values, metadata, to, config)

    return _run(plan, grad_x, None, problem, configs_of)


def two_four_linear_grad_values(grad_y: Tensor, x: Tensor, metadata: Tensor) -> Tensor:
    """``grad_y.T @ x`` at the kept places, ``(N, K/2)``, of 2-D tensors of any strides."""
    rows, columns = grad_y.shape[1], x.shape[1]
    grad = x.new_empty(rows, columns // 2)
    blocks = triton.cdiv(rows, SIDE) * triton.cdiv(columns, SIDE)
    problem = problem_of("two_four_linear_grad_values", x, blocks * SIDE, 0)

    def plan(to: Tensor, config: Config) -> Launch:
        return plan_grad_values(grad_y, x, metadata, to, config)

    return _run(plan, grad, None, problem, sum_configs)
