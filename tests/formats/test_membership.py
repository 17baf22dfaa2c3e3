"""Pattern.is_active against the mask, for every way in which tiles and bits are stored."""

import pytest
import torch

from sparsekern.formats import Pattern

SHAPES = {
    "1x1": (1, 1),
    "65x130": (65, 130),
    "conv_12x33x3x2": (12, 33, 3, 2),
    "conv_70x9x1x1": (70, 9, 1, 1),
}
DENSITIES = {"none": 0.0, "hundredth": 0.01, "half": 0.5, "all": 1.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("complete", [False, True], ids=["stored_tiles", "complete_grid"])
@pytest.mark.parametrize("tile_size", [8, 16, 32, 64])
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_position(shape, density, tile_size, complete):
    mask = torch.rand(shape, generator=generator()) < density
    pattern = Pattern.from_mask(mask, tile_size=tile_size, complete=complete)
    matrix = mask if mask.dim() == 2 else mask.permute(0, 2, 3, 1)
    order = torch.randperm(pattern.numel, generator=generator(1))
    assert torch.equal(pattern.is_active(order), matrix.flatten()[order])


def test_empty_tiles_between_stored_ones():
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[11, 17] = mask[11, 39] = mask[39, 0] = True
    pattern = Pattern.from_mask(mask, tile_size=8)
    assert torch.equal(pattern.is_active(torch.arange(1600)).view(40, 40), mask)


def test_the_shape_of_the_positions_is_kept():
    pattern = Pattern.from_mask(torch.eye(5, dtype=torch.bool))
    positions = torch.tensor([[0, 6, 6], [1, 24, 23]])
    assert pattern.is_active(positions).tolist() == [[True, True, True], [False, True, False]]
    assert pattern.is_active(positions.T).shape == (3, 2)
    assert pattern.is_active(positions[:0]).shape == (0, 3)


def test_a_position_beyond_32_bits():
    pattern = Pattern.random((2**17, 2**17), 1 - 2**-30, generator=generator())
    positions = pattern.value_rows() * 2**17 + pattern.value_cols()
    assert pattern.nnz == 16
    assert int(positions.max()) > 2**32
    assert pattern.is_active(positions).all()
    assert not pattern.is_active(positions ^ 1).any()


@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [
        pytest.param([0], TypeError, r"positions must be an int64 tensor, got \[0\]", id="list"),
        pytest.param(
            torch.tensor([0.0]), TypeError, "must be an int64 tensor, got a torch.float32", id="float"
        ),
        pytest.param(
            torch.tensor([3, -1]), ValueError, "at least 0 and below the 15 .* got -1", id="negative"
        ),
        pytest.param(
            torch.tensor([15, 3]), ValueError, "at least 0 and below the 15 .* got 15", id="too_large"
        ),
        pytest.param(
            torch.zeros(1, dtype=torch.int64, device="meta"),
            ValueError,
            "positions must be a tensor with contents",
            id="meta",
        ),
    ],
)
def test_bad_input(positions, error, message):
    with pytest.raises(error, match=message):
        Pattern.from_mask(torch.ones(3, 5, dtype=torch.bool)).is_active(positions)
