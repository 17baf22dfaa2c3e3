"""Block sparsity that changes as training goes on: whole blocks of the weight matrix are exchanged.

Block (i, j) holds rows ``i * B`` to ``(i + 1) * B`` and columns ``j * B`` to ``(j + 1) * B`` of the weight
matrix ``(N, K)``, cut off at its last row and column. A convolution's columns are in (kh, kw, cin) order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsekern.formats.checks import (
    check_bool,
    check_choice,
    check_shape,
    check_strided,
    describe,
    is_number,
)
from sparsekern.formats.layout import BLOCK_SIZES, check_block_size, tile_coordinates
from sparsekern.formats.pattern import Pattern
from sparsekern.formats.whole_tiles import pattern_of_tiles, whole_tiles

__all__ = [
    "block_grid",
    "block_scores_of_gradient",
    "block_scores_of_values",
    "block_size_of",
    "positions_exchanged",
    "update_blocks",
]


def block_grid(pattern: Pattern, block_size: int) -> tuple[int, int]:
    """Rows and columns of blocks: ``(ceil(N / B), ceil(K / B))``."""
    rows, cols = pattern.matrix_shape
    return -(-rows // block_size), -(-cols // block_size)


def block_size_of(pattern: Pattern) -> int | None:
    """The largest of 128, 64 and 32 of which the pattern consists in whole blocks.

    Blocks are no smaller than the pattern's tiles. Larger blocks may come about by chance where only few are
    active. Read from the counts of the tiles on the host, without the bits.

    Returns
    -------
    int or None
        None if no size fits, and for a pattern that has no inactive position or no active one, which has
        nothing to exchange.
    """
    if pattern.nnz in (0, pattern.numel):
        return None
    tiles = whole_tiles(pattern)
    sizes = [size for size in sorted(BLOCK_SIZES, reverse=True) if size % pattern.tile_size == 0]
    if tiles is None:
        return None
    return next((size for size in sizes if _whole_blocks(tiles, pattern, size) is not None), None)


def block_scores_of_values(values: Tensor, pattern: Pattern, block_size: int) -> Tensor:
    """Sum of ``|value|`` over each block; 0 where a block has no active position.

    Parameters
    ----------
    values : Tensor
        ``(nnz,)``, floating point, on the pattern's device.
    pattern : Pattern
        Its active positions need not form whole blocks.
    block_size : int
        32, 64 or 128; a multiple of the tile size.

    Returns
    -------
    Tensor
        `block_grid`, on the same device; float32, and float64 for float64. The same bits every time.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.
    """
    _check_blocks(pattern, block_size)
    _check_floats("values", values, (pattern.nnz,), pattern)
    magnitudes = values.detach().to(torch.promote_types(values.dtype, torch.float32)).abs()
    sums = torch.segment_reduce(magnitudes, "sum", offsets=pattern.tile_start, initial=0)
    rows, cols = block_grid(pattern, block_size)
    ratio = block_size // pattern.tile_size
    grid = sums.new_zeros(rows * ratio, cols * ratio)
    grid[tile_coordinates(pattern.data, pattern._layout)] = sums
    return _per_block(grid, ratio)


def block_scores_of_gradient(gradient: Tensor, block_size: int) -> Tensor:
    """Sum of ``|g|`` over each block of a dense gradient, active or not.

    Parameters
    ----------
    gradient : Tensor
        Of the weight's own shape, floating point, any strides.
    block_size : int
        32, 64 or 128.

    Returns
    -------
    Tensor
        ``(ceil(N / B), ceil(K / B))``, on the same device; float32, and float64 for float64.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.
    """
    size = check_block_size(block_size)
    if not isinstance(gradient, Tensor) or not gradient.dtype.is_floating_point:
        raise TypeError(f"gradient must be a floating-point tensor, got {describe(gradient)}")
    rows, *_ = check_shape(tuple(check_strided(gradient, "gradient").shape), "gradient.shape")
    gradient = gradient.detach()
    matrix = gradient if gradient.dim() == 2 else gradient.permute(0, 2, 3, 1).reshape(rows, -1)
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    # Blocks that are cut off are taken apart from the others, so that all are views and nothing is padded.
    bands = []
    for band in _cut(matrix, 0, size):
        sums = [_block_norms(part, size, dtype) for part in _cut(band, 1, size)]
        bands.append(torch.cat(sums, 1))
    return torch.cat(bands)


def update_blocks(
    values: Tensor,
    pattern: Pattern,
    scores: Tensor,
    fraction: float,
    *,
    block_size: int,
    by: str = "magnitude",
    regrow: bool = True,
) -> Pattern:
    """Drop the weakest active blocks and grow as many where a score is largest.

    Blocks are exchanged among those of equal size only, so that nnz never changes: whole ones, those that the
    last column cuts off, those that the last row cuts off, and the corner. Of ``n`` active blocks of a kind,
    ``int(n * fraction)`` with the smallest sum of ``|value|`` are dropped. Then, of all blocks of that kind
    that are not kept, as many with the largest ``|score|`` (or score) become active: the just dropped may
    come back. Ties go to the block that comes first, row by row; -0.0 is 0.0, and NaN counts as larger than
    infinity. `sparsekern.ops.transfer` or `transfer_all` then move the values.

    Parameters
    ----------
    values : Tensor
        ``(nnz,)``, floating point, on the pattern's device.
    pattern : Pattern
        Of whole blocks, see `block_size_of`.
    scores : Tensor
        `block_grid`, floating point, on the same device: of active blocks too, for those dropped.
    fraction : float
        In [0, 1].
    block_size : int
        32, 64 or 128; a multiple of the tile size.
    by : str
        ``"magnitude"`` or ``"value"``: grow the largest ``|score|`` or the largest score.
    regrow : bool
        False: the just dropped do not come back; no more are dropped than there are others to grow.

    Returns
    -------
    Pattern
        Of the same tile size, on the same device. Only active tiles are stored.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or the pattern is not one of whole blocks.

    Notes
    -----
    The choice is made on the host, from one number for each block; a GPU is waited for.
    """
    _check_blocks(pattern, block_size)
    _check_floats("values", values, (pattern.nnz,), pattern)
    _check_floats("scores", scores, block_grid(pattern, block_size), pattern)
    if not is_number(fraction):
        raise TypeError(f"fraction must be a number in [0, 1], got {describe(fraction)}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    check_choice(by, ("magnitude", "value"), "by")
    check_bool(regrow, "regrow")
    active = _active_blocks(pattern, block_size)
    magnitudes = block_scores_of_values(values, pattern, block_size).cpu()
    scores = scores.detach().cpu()
    scores = scores.abs() if by == "magnitude" else scores
    for kind, _ in _kinds(pattern, block_size):
        count = _count(active[kind], fraction, regrow)
        active[kind] = _exchange(active[kind], magnitudes[kind], scores[kind], count, regrow)
    ratio = block_size // pattern.tile_size
    new_tiles = active.repeat_interleave(ratio, 0).repeat_interleave(ratio, 1)
    tile_rows, tile_cols = (-(-size // pattern.tile_size) for size in pattern.matrix_shape)
    return pattern_of_tiles(new_tiles[:tile_rows, :tile_cols], pattern)


def positions_exchanged(pattern: Pattern, fraction: float, *, block_size: int, regrow: bool = True) -> int:
    """How many positions `update_blocks` drops: those of all blocks that it drops."""
    active = _active_blocks(pattern, block_size)
    return sum(size * _count(active[kind], fraction, regrow) for kind, size in _kinds(pattern, block_size))


def _active_blocks(pattern: Pattern, block_size: int) -> Tensor:
    tiles = whole_tiles(pattern)
    active = None if tiles is None else _whole_blocks(tiles, pattern, block_size)
    if active is None:
        raise ValueError(f"pattern must consist of whole blocks of {block_size}, got {pattern}")
    return active


def _kinds(pattern: Pattern, block_size: int) -> list[tuple[tuple[slice, slice], int]]:
    """Where in the grid the blocks of each size lie, and their positions."""
    (rows, last_height), (cols, last_width) = (divmod(size, block_size) for size in pattern.matrix_shape)
    heights = ((slice(rows), block_size), (slice(rows, None), last_height))
    widths = ((slice(cols), block_size), (slice(cols, None), last_width))
    return [((row, col), height * width) for row, height in heights for col, width in widths]


def _count(active: Tensor, fraction: float, regrow: bool) -> int:
    """Blocks to exchange among those of one size."""
    alive = int(active.sum())
    count = int(alive * fraction)
    return count if regrow else min(count, active.numel() - alive)


def _exchange(active: Tensor, magnitudes: Tensor, scores: Tensor, count: int, regrow: bool) -> Tensor:
    """Other active blocks among those of one size. Stable sorts in their order: ties go to the first."""
    shape, active = active.shape, active.flatten()
    alive = active.nonzero().squeeze(1)
    dropped = alive[magnitudes.flatten()[alive].sort(stable=True).indices[:count]]
    kept = active.index_fill(0, dropped, False)
    free = (kept if regrow else active).logical_not().nonzero().squeeze(1)
    grown = free[scores.flatten()[free].sort(descending=True, stable=True).indices[:count]]
    return kept.index_fill(0, grown, True).view(shape)


def _whole_blocks(tiles: Tensor, pattern: Pattern, block_size: int) -> Tensor | None:
    """The active blocks by the active tiles: bool, `block_grid`; None where a block is active in part."""
    rows, cols = block_grid(pattern, block_size)
    ratio = block_size // pattern.tile_size
    beyond = (0, cols * ratio - tiles.shape[1], 0, rows * ratio - tiles.shape[0])
    counts = _per_block(pad(tiles, beyond), ratio)
    active = counts > 0
    return (
        active
        if torch.equal(counts, active * _per_block(pad(torch.ones_like(tiles), beyond), ratio))
        else None
    )


def _per_block(grid: Tensor, ratio: int) -> Tensor:
    """Sums over groups of `ratio` x `ratio` tiles."""
    return grid.unflatten(0, (-1, ratio)).unflatten(2, (-1, ratio)).sum((1, 3))


def _cut(matrix: Tensor, dim: int, size: int) -> list[Tensor]:
    """The part of a dimension that blocks fill, and the rest; only those that are not empty."""
    filled = matrix.shape[dim] // size * size
    parts = matrix.split([filled, matrix.shape[dim] - filled], dim)
    return [part for part in parts if part.shape[dim]]


def _block_norms(matrix: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Sum of magnitudes over blocks of one shape: at most `size` x `size`, and the matrix a whole number."""
    height, width = (min(size, extent) for extent in matrix.shape)
    blocks = matrix.unflatten(0, (-1, height)).unflatten(2, (-1, width))
    return torch.linalg.vector_norm(blocks, 1, (1, 3), dtype=dtype)


def _check_blocks(pattern: Any, block_size: Any) -> None:
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a sparsekern.Pattern, got {describe(pattern)}")
    if check_block_size(block_size) % pattern.tile_size:
        raise ValueError(
            f"block_size must be a multiple of the tile size {pattern.tile_size}, got {block_size}"
        )


def _check_floats(name: str, tensor: Any, shape: tuple[int, ...], pattern: Pattern) -> None:
    if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating-point tensor, got {describe(tensor)}")
    if tuple(tensor.shape) != shape or tensor.device != pattern.device:
        raise ValueError(
            f"{name} must have shape {shape} on {pattern.device}, "
            f"got {tuple(tensor.shape)} on {tensor.device}"
        )
