"""Patterns of whole tiles, read and built, against those of a mask."""

import pytest
import torch

from sparsekern.formats import Pattern
from sparsekern.formats.whole_tiles import pattern_of_tiles, whole_tiles

SHAPES = {
    "1x1": (1, 1),
    "64x192": (64, 192),
    "65x130": (65, 130),
    "7x300": (7, 300),
    "conv_20x7x3x3": (20, 7, 3, 3),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mask_of_tiles(tiles, shape, tile_size):
    rows, cols = shape[0], torch.Size(shape[1:]).numel()
    matrix = tiles.repeat_interleave(tile_size, 0).repeat_interleave(tile_size, 1)[:rows, :cols]
    if len(shape) == 2:
        return matrix
    return matrix.reshape(rows, *shape[2:], shape[1]).permute(0, 3, 1, 2)


@pytest.mark.parametrize("density", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("tile_size", [8, 16, 32, 64])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_build_and_read(shape, tile_size, density):
    like = Pattern.from_mask(torch.rand(shape, generator=generator(1)) < 0.5, tile_size=tile_size)
    layout = like._layout
    for seed in range(5):
        tiles = torch.rand(layout.tile_rows, layout.tile_cols, generator=generator(seed)) < density
        mask = mask_of_tiles(tiles, shape, tile_size)
        built = pattern_of_tiles(tiles, like)
        built.validate()
        assert torch.equal(built.data, Pattern.from_mask(mask, tile_size=tile_size).data)
        assert built._layout == Pattern(built.data)._layout
        assert torch.equal(whole_tiles(built), tiles)
        assert torch.equal(whole_tiles(Pattern.from_mask(mask, tile_size=tile_size, complete=True)), tiles)


@pytest.mark.parametrize("complete", [False, True])
def test_a_tile_active_in_part(complete):
    mask = torch.ones(20, 30, dtype=torch.bool)
    for row, col in [(0, 0), (7, 7), (19, 29), (0, 29)]:
        mask[row, col] = False
        assert whole_tiles(Pattern.from_mask(mask, tile_size=8, complete=complete)) is None
        mask[row, col] = True


def test_a_default_device_does_not_move_them():
    pattern = Pattern.random((100, 100), 0.5, block_size=32, generator=generator())
    with torch.device("meta"):
        tiles = whole_tiles(pattern)
        assert pattern_of_tiles(tiles, pattern) == pattern
