"""`nm_mask` and `nm_mask_` against sorting each group."""

from __future__ import annotations

import pytest
import torch

import sparsekern as sk
from sparsekern.methods import nm_mask

PATTERNS = ["1:2", "1:4", "2:4", "3:4", "4:8", "1:8", "5:7", "16:64"]


def by_sorting(weight, pattern, dim):
    """Group by group in Python: the largest first, of equal ones the leftmost."""
    kept, group = map(int, pattern.split(":"))
    moved = weight.detach().movedim(dim, -1)
    mask = torch.zeros(moved.shape, dtype=torch.bool)
    rows, flags = moved.reshape(-1, moved.shape[-1]), mask.view(-1, moved.shape[-1])
    for row, flag in zip(rows.tolist(), flags, strict=True):
        for start in range(0, len(row), group):
            places = range(start, min(start + group, len(row)))
            for place in sorted(places, key=lambda i: (-abs(row[i]), i))[:kept]:
                flag[place] = True
    return mask.movedim(-1, dim)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_any_pattern(pattern, dtype):
    group = int(pattern.split(":")[1])
    # Small integers: most groups have ties, and zeros of both signs.
    weight = torch.randint(-3, 4, (7, 3 * group), generator=torch.manual_seed(0)).to(dtype)
    weight[weight == 0] *= torch.tensor([-1.0], dtype=dtype)
    expected = by_sorting(weight, pattern, 1)
    assert torch.equal(nm_mask(weight, pattern), expected)
    before = weight.clone()
    assert torch.equal(sk.nm_mask_(weight, pattern), expected)
    assert torch.equal(weight, before.where(expected, 0))


@pytest.mark.parametrize("shape", [(8,), (5, 8), (3, 4, 8), (8, 8, 3, 4)], ids=str)
def test_any_dimension(shape):
    weight = torch.randn(shape, generator=torch.manual_seed(1))
    for dim in range(-len(shape), len(shape)):
        if shape[dim] % 4 == 0:
            mask = nm_mask(weight, dim=dim)
            assert torch.equal(mask, by_sorting(weight, "2:4", dim))
            assert torch.equal(
                mask.movedim(dim, -1).unflatten(-1, (-1, 4)).sum(-1).unique(), torch.tensor([2])
            )


def test_channels_last_convolutions_are_grouped_along_input_channels():
    weight = torch.randn(6, 8, 3, 3, generator=torch.manual_seed(2))
    last = weight.contiguous(memory_format=torch.channels_last)
    mask = sk.nm_mask_(last, "2:4")
    assert torch.equal(mask, by_sorting(weight, "2:4", 1))
    assert last.is_contiguous(memory_format=torch.channels_last)
    # In memory, the four of a group are neighbours.
    stored = last.permute(0, 2, 3, 1).reshape(-1, 4)
    assert (stored != 0).sum(1).eq(2).all()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 9])
def test_padded(size):
    weight = torch.randn(4, size, generator=torch.manual_seed(3))
    assert torch.equal(nm_mask(weight, "2:4", uneven="pad"), by_sorting(weight, "2:4", 1))
    # Padding counts as less than a zero: no position is wasted on it.
    assert (
        nm_mask(torch.zeros(4, size), "2:4", uneven="pad")[:, -(size % 4) :].sum(1).eq(min(2, size % 4)).all()
    )


def test_sizes_are_never_skipped():
    with pytest.raises(
        ValueError, match=r"multiple of 4 elements along dim 1 for 2:4, got 10; the nearest: 8 and 12"
    ):
        nm_mask(torch.ones(4, 10))
    with pytest.raises(ValueError, match=r"got 3; the nearest: 4; or pass uneven='pad'"):
        nm_mask(torch.ones(4, 3))


def test_parameters_and_views():
    layer = torch.nn.Linear(8, 6)
    mask = sk.nm_mask_(layer.weight, "1:4")
    assert layer.weight.requires_grad
    assert not mask.requires_grad
    assert int(mask.sum()) == 12
    weight = torch.randn(8, 6)
    assert torch.equal(sk.nm_mask_(weight.T), nm_mask(weight, dim=0).T)


def test_expanded_views_are_refused():
    row = torch.ones(1, 8)
    with pytest.raises(ValueError, match="memory for each element, got an expanded one"):
        sk.nm_mask_(row.expand(4, 8))
    assert torch.equal(row, torch.ones(1, 8))


def test_masks_are_those_of_sparsify():
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 4))
    dense = model[0].weight.detach().clone()
    sk.sparsify_(model, masks={"0": nm_mask(model[0].weight, "1:4")})
    assert torch.equal(model[0].to_dense(), dense.where(by_sorting(dense, "1:4", 1), 0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pattern": "4:2"}, ValueError, r"pattern must be 'N:M' .* got '4:2'"),
        ({"pattern": "2:4 "}, ValueError, "pattern must be 'N:M'"),
        ({"pattern": "0:4"}, ValueError, "pattern must be 'N:M'"),
        ({"pattern": "2:128"}, ValueError, "M <= 64"),
        ({"pattern": 2}, TypeError, r"got 2 \(int\)"),
        ({"dim": 2}, ValueError, "dim must be a dimension of weight, which has 2, got 2"),
        ({"dim": 0.5}, ValueError, "dim must be"),
        ({"uneven": "skip"}, ValueError, "uneven must be 'refuse' or 'pad', got 'skip'"),
        ({"weight": torch.ones(4, 4, dtype=torch.int32)}, TypeError, "floating-point tensor"),
        ({"weight": torch.tensor(1.0)}, ValueError, "got a scalar"),
        ({"weight": torch.tensor([[1.0, float("nan"), 0, 0]])}, ValueError, r"finite, got nan at \(0, 1\)"),
        ({"weight": torch.tensor([[1.0, 2, 0, float("-inf")]])}, ValueError, r"finite, got -inf at \(0, 3\)"),
    ],
)
def test_bad_input(arguments, error, message):
    weight = torch.ones(4, 8)
    with pytest.raises(error, match=message):
        sk.nm_mask_(**{"weight": weight, **arguments})
    assert torch.equal(weight, torch.ones(4, 8))
