"""Exchanging whole blocks, against the same on a dense weight, block by block in plain Python."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sparsekern.formats import Pattern
from sparsekern.methods.blocks import (
    block_grid,
    block_scores_of_gradient,
    block_scores_of_values,
    block_size_of,
    update_blocks,
)
from sparsekern.ops import transfer, update_topology

SHAPES = {
    "256x192": (256, 192),
    "100x300": (100, 300),
    "31x700": (31, 700),
    "300x50": (300, 50),
    "conv_70x20x3x3": (70, 20, 3, 3),
    "conv_128x64x1x1": (128, 64, 1, 1),
}
# Tile sizes from which blocks of a size are made.
SIZES = [(32, 32), (32, 8), (64, 64), (64, 32), (128, 64), (128, 16)]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def integers(shape, least, most, seed, dtype=torch.float32):
    return torch.randint(least, most + 1, shape, generator=generator(seed)).to(dtype)


def as_matrix(dense):
    return dense if dense.dim() == 2 else dense.permute(0, 2, 3, 1).reshape(len(dense), -1)


def blocks_of(matrix, size):
    """The blocks in a list of lists, views of the matrix."""
    return [band.split(size, dim=1) for band in matrix.split(size)]


def sums(matrix, size):
    return torch.stack(
        [torch.stack([block.abs().double().sum() for block in row]) for row in blocks_of(matrix, size)]
    )


def random_blocks(shape, density, block_size, tile_size, seed, complete=False):
    """A pattern of random whole blocks, each active or not by itself."""
    matrix = torch.zeros(shape[0], math.prod(shape[1:]), dtype=torch.bool)
    rows = blocks_of(matrix, block_size)
    chosen = torch.rand(len(rows), len(rows[0]), generator=generator(seed)) < density
    for i, row in enumerate(rows):
        for j, block in enumerate(row):
            block[:] = chosen[i, j]
    if len(shape) == 4:
        matrix = matrix.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    return Pattern.from_mask(matrix, tile_size=tile_size, complete=complete)


def update_dense(weight, mask, scores, fraction, size, by, regrow):
    """The mask after an update of a dense weight matrix."""
    new = mask.clone()
    weights, masks, news = (blocks_of(matrix, size) for matrix in (weight, mask, new))
    kinds = {}
    for i, row in enumerate(weights):
        for j, block in enumerate(row):
            kinds.setdefault(tuple(block.shape), []).append((i, j))
    for places in kinds.values():
        alive = [(i, j) for i, j in places if masks[i][j].any()]
        dead = [place for place in places if place not in alive]
        count = int(len(alive) * fraction)
        count = count if regrow else min(count, len(dead))
        dropped = sorted(alive, key=lambda at: (float(weights[at[0]][at[1]].abs().sum()), at))[:count]
        free = sorted(dead + dropped) if regrow else dead
        score = {at: float(scores[at].abs() if by == "magnitude" else scores[at]) for at in free}
        grown = sorted(free, key=lambda at: (-score[at], at))[:count]
        for i, j in dropped:
            news[i][j][:] = False
        for i, j in grown:
            news[i][j][:] = True
    return new


# Density of active blocks, and the fraction of them that is exchanged.
EXCHANGES = [(0.1, 0.5), (0.4, 0.3), (0.4, 1.0), (0.6, 0.99), (0.9, 0.5), (1.0, 0.5), (0.0, 0.5), (0.5, 0.0)]


@pytest.mark.parametrize(("block_size", "tile_size"), SIZES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_blocks_of_a_dense_weight(shape, block_size, tile_size):
    moved = 0
    choices = itertools.product([True, False], ["magnitude", "value"])
    for seed, ((regrow, by), (density, fraction)) in enumerate(itertools.product(choices, EXCHANGES)):
        pattern = random_blocks(shape, density, block_size, tile_size, seed, complete=seed % 3 == 1)
        # Few different numbers, so that sums and scores are often equal; sums are exact in float32.
        values = integers((pattern.nnz,), -1, 1, seed) * (integers((pattern.nnz,), 0, 2000, seed) == 0)
        scores = integers(block_grid(pattern, block_size), -2, 2, seed)
        mask, weight = pattern.to_mask(), pattern.unpack(values)
        right = update_dense(as_matrix(weight), as_matrix(mask), scores, fraction, block_size, by, regrow)
        new = update_blocks(values, pattern, scores, fraction, block_size=block_size, by=by, regrow=regrow)
        new.validate()
        assert new.nnz == pattern.nnz
        assert torch.equal(as_matrix(new.to_mask()), right)
        assert torch.equal(new.data, Pattern.from_mask(new.to_mask(), tile_size=tile_size).data)
        kept = torch.where(new.to_mask() & mask, weight, 0)
        assert torch.equal(new.unpack(transfer(values, pattern, new)), kept)
        moved += not torch.equal(new.to_mask(), mask)
    assert moved > 5 or scores.numel() < 8


def test_special_numbers_have_an_order():
    pattern = Pattern.from_mask(torch.arange(256).repeat(32, 1) < 128, tile_size=32)
    values = torch.ones(4, 32, 32)
    values[0, 0, 0], values[1, 5, 5], values[2] = math.nan, math.inf, -0.0
    scores = torch.tensor([[9.0, 9.0, -0.0, 0.0, -math.inf, 1.0, math.nan, -math.nan]])

    def updated(count, by):
        new = update_blocks(values.flatten(), pattern, scores, count / 4, block_size=32, by=by)
        return new.to_mask()[0, ::32].nonzero().flatten().tolist()

    assert updated(1, "value") == [0, 1, 3, 6]
    assert updated(2, "value") == [0, 1, 6, 7]
    assert updated(3, "value") == [0, 1, 6, 7]
    assert updated(3, "magnitude") == [0, 4, 6, 7]
    assert updated(4, "value") == [0, 1, 6, 7]


@pytest.mark.parametrize("complete", [False, True], ids=["stored_tiles", "complete_grid"])
@pytest.mark.parametrize(("block_size", "tile_size"), SIZES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scores(shape, block_size, tile_size, complete, dtype):
    pattern = random_blocks(shape, 0.6, block_size, tile_size, 3, complete)
    values = integers((pattern.nnz,), -3, 3, 4, dtype)
    expected = sums(as_matrix(pattern.unpack(values)), block_size)
    got = block_scores_of_values(values, pattern, block_size)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.shape == block_grid(pattern, block_size)
    assert torch.equal(got.double(), expected)

    gradient = integers(shape, -3, 3, 5, dtype)
    others = (
        [gradient.to(memory_format=torch.channels_last)]
        if gradient.dim() == 4
        else [gradient.T.contiguous().T]
    )
    for same in [gradient, *others]:
        got = block_scores_of_gradient(same.requires_grad_(), block_size)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert not got.requires_grad
        assert torch.equal(got.double(), sums(as_matrix(same.detach()), block_size))


def test_scores_of_values_that_do_not_fill_blocks():
    mask = torch.rand(100, 300, generator=generator()) < 0.01
    pattern = Pattern.from_mask(mask, tile_size=8)
    values = integers((pattern.nnz,), -3, 3, 1)
    expected = sums(pattern.unpack(values), 64)
    assert torch.equal(block_scores_of_values(values, pattern, 64).double(), expected)


@pytest.mark.parametrize("complete", [False, True], ids=["stored_tiles", "complete_grid"])
@pytest.mark.parametrize(("block_size", "tile_size"), SIZES)
@pytest.mark.parametrize("shape", [(256, 384), (100, 300), (70, 20, 3, 3), (600, 700)], ids=str)
def test_the_block_size_is_found(shape, block_size, tile_size, complete):
    for seed in range(3):
        pattern = random_blocks(shape, 0.5, block_size, tile_size, seed, complete)
        mask = as_matrix(pattern.to_mask())
        fitting = [
            size
            for size in (32, 64, 128)
            if size >= tile_size and all(b.all() == b.any() for row in blocks_of(mask, size) for b in row)
        ]
        assert block_size in fitting
        expected = max(fitting) if 0 < pattern.nnz < pattern.numel else None
        assert block_size_of(pattern) == expected
        if expected is None:
            continue
        # One position fewer, inside and at the edges, and there are no blocks any more.
        for position in [0, pattern.nnz // 2, pattern.nnz - 1]:
            values = torch.ones(pattern.nnz)
            values[position] = 0
            worn = Pattern.from_mask(pattern.unpack(values) > 0, tile_size=tile_size, complete=complete)
            assert block_size_of(worn) is None


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_the_block_size_of_a_random_pattern(block_size):
    pattern = Pattern.random((1000, 900), 0.7, block_size=block_size, generator=generator())
    assert block_size_of(pattern) == block_size
    assert block_size_of(Pattern.random((1000, 900), 0.7, generator=generator())) is None


def test_blocks_smaller_than_tiles_are_not_looked_for():
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[:32, :32] = True
    assert block_size_of(Pattern.from_mask(mask, tile_size=64)) is None
    assert block_size_of(Pattern.from_mask(mask, tile_size=32)) == 32


@pytest.mark.parametrize("density", [0, 1])
def test_nothing_to_exchange_has_no_block_size(density):
    mask = torch.full((64, 96), bool(density))
    assert block_size_of(Pattern.from_mask(mask)) is None
    assert block_size_of(Pattern.from_mask(mask, complete=True)) is None


def test_a_pattern_of_update_topology_is_read():
    pattern = random_blocks((100, 300), 0.4, 32, 32, 1)
    values = torch.ones(pattern.nnz)
    (same,) = update_topology([values], [pattern], [torch.zeros(100, 300)], [0])
    assert same.num_tiles > pattern.num_tiles
    assert block_size_of(same) == block_size_of(pattern) == 32


PATTERN = random_blocks((100, 300), 0.4, 32, 32, 1)
GOOD = {"values": torch.ones(PATTERN.nnz), "pattern": PATTERN, "scores": torch.zeros(4, 10), "fraction": 0.5}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"pattern": 3}, TypeError, "pattern must be a sparsekern.Pattern, got 3", id="pattern"),
        pytest.param({"values": torch.ones(3)}, ValueError, r"values must have shape \(", id="values"),
        pytest.param({"values": [1.0]}, TypeError, "values must be a floating-point tensor", id="list"),
        pytest.param(
            {"scores": torch.ones(10, 4)}, ValueError, r"scores .* \(4, 10\) .*\(10, 4\)", id="scores"
        ),
        pytest.param(
            {"scores": torch.ones(4, 10, dtype=torch.int64)}, TypeError, "scores must be a floating", id="int"
        ),
        pytest.param({"fraction": 1.5}, ValueError, r"fraction must be in \[0, 1\], got 1.5", id="fraction"),
        pytest.param({"fraction": math.nan}, ValueError, r"fraction must be in \[0, 1\], got nan", id="nan"),
        pytest.param({"fraction": True}, TypeError, "fraction must be a number", id="bool"),
        pytest.param({"by": "size"}, ValueError, "by must be 'magnitude' or 'value', got 'size'", id="by"),
        pytest.param({"regrow": 1}, TypeError, "regrow must be True or False, got 1", id="regrow"),
        pytest.param({"block_size": 16}, ValueError, "block_size must be 32, 64 or 128, got 16", id="16"),
        pytest.param(
            {"block_size": 64, "scores": torch.zeros(2, 5)},
            ValueError,
            "pattern must consist of whole blocks of 64, got Pattern",
            id="other_blocks",
        ),
        pytest.param(
            {"pattern": random_blocks((100, 300), 0.4, 64, 64, 1)},
            ValueError,
            "block_size must be a multiple of the tile size 64, got 32",
            id="large_tiles",
        ),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        update_blocks(**{**GOOD, "block_size": 32, **arguments})


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        pytest.param(None, TypeError, "gradient must be a floating-point tensor, got None", id="none"),
        pytest.param(
            torch.ones(3, dtype=torch.int64), TypeError, "gradient must be a floating-point", id="int"
        ),
        pytest.param(torch.ones(3), ValueError, r"gradient.shape must be \(out, in\)", id="1d"),
    ],
)
def test_bad_gradient(gradient, error, message):
    with pytest.raises(error, match=message):
        block_scores_of_gradient(gradient, 32)
