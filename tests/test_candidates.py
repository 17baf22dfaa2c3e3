"""The selection of the largest scores from passes over them, on scores that are simply there."""

from __future__ import annotations

import pytest
import torch

from sparsekern import candidates

SHAPE = (30, 40)


class StoredScores:
    """Passes over a matrix of scores, with a record of them."""

    device = torch.device("cpu")

    def __init__(self, scores):
        self.scores = scores
        self.dtype, self.shape = scores.dtype, tuple(scores.shape)
        self.keys = scores.view(candidates.KEY_TYPES[scores.dtype]).long()
        self.calls = []

    def count(self, prefix, shift, bits):
        self.calls.append(("count", shift, bits))
        matching = self.keys[self.keys >> (shift + bits) == prefix]
        return torch.bincount(matching >> shift & (2**bits - 1), minlength=2**bits)

    def count_ties(self, key):
        self.calls.append(("count_ties",))
        return (self.keys == key).sum(1)

    def emit(self, least, tied_rows, positions, scores):
        self.calls.append(("emit", len(positions)))
        rows = torch.arange(self.shape[0])[:, None]
        chosen = (self.keys > least) | ((self.keys == least) & (rows < tied_rows))
        found = chosen.flatten().nonzero().squeeze(1).flip(0)
        positions.copy_(found)
        scores.copy_(self.scores.flatten()[found])
        return len(found)


def stable_sort(scores, count):
    positions = scores.flatten().sort(descending=True, stable=True).indices[:count].sort().values
    return positions, scores.flatten()[positions]


SCORES = {
    "distinct": torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)),
    "a few values": torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)).mul(5).round(),
    "zeros": torch.zeros(SHAPE),
    "neighbouring floats": 1 + torch.arange(1200).view(SHAPE) * torch.finfo(torch.float32).eps,
    "subnormal": torch.arange(1200).view(SHAPE) * 1e-45,
    "infinite": torch.where(torch.arange(1200).view(SHAPE) % 3 == 0, torch.inf, 1.0),
}


@pytest.mark.parametrize("surplus", [0, 17, 65536])
@pytest.mark.parametrize("count", [0, 1, 30, 41, 599, 1199, 1200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", SCORES)
def test_selects_as_a_stable_sort(kind, dtype, count, surplus, monkeypatch):
    monkeypatch.setattr(candidates, "SURPLUS", surplus)
    scores = SCORES[kind].to(dtype)
    got = candidates.largest(StoredScores(scores), 1200, count)
    for result, truth in zip(got, stable_sort(scores, count)):
        assert torch.equal(result, truth)


def test_small_problems_take_one_pass():
    passes = StoredScores(SCORES["distinct"])
    candidates.largest(passes, 1200, 10)
    assert passes.calls == [("emit", 1200)]


def test_digits_cover_the_key(monkeypatch):
    monkeypatch.setattr(candidates, "SURPLUS", 0)
    for dtype, digits in [
        (torch.float32, [(15, 16), (0, 15)]),
        (torch.float64, [(47, 16), (31, 16), (15, 16), (0, 15)]),
    ]:
        passes = StoredScores(torch.ones(SHAPE, dtype=dtype))
        candidates.largest(passes, 1200, 41)
        # Of the ties, those of the second row that are too many are dropped after they are written down.
        assert passes.calls == [*(("count", *digit) for digit in digits), ("count_ties",), ("emit", 80)]


def test_no_more_is_written_down_than_the_surplus(monkeypatch):
    monkeypatch.setattr(candidates, "SURPLUS", 20)
    passes = StoredScores(SCORES["distinct"])
    candidates.largest(passes, 1200, 50)
    assert passes.calls[-1][0] == "emit"
    assert 50 <= passes.calls[-1][1] <= 100


def test_passes_that_disagree():
    passes = StoredScores(SCORES["distinct"])
    passes.emit = lambda least, tied_rows, positions, scores: 7
    with pytest.raises(RuntimeError, match="the inputs changed while they were read"):
        candidates.largest(passes, 1200, 10)


@pytest.mark.parametrize("count", [-1, 1201])
def test_count_out_of_range(count):
    with pytest.raises(ValueError, match=f"at most the 1200 inactive positions, got {count}"):
        candidates.largest(StoredScores(SCORES["zeros"]), 1200, count)
