"""uniform_candidates: the distribution that a random score for every position has, exactly."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter

import pytest
import scipy.stats
import torch

from sparsekern.formats import Pattern
from sparsekern.methods.random_growth import uniform_candidates
from sparsekern.ops import update_topology

SHAPES = {"6x25": (6, 25), "65x130": (65, 130), "conv_12x9x3x2": (12, 9, 3, 2)}
DENSITIES = {"none": 0.0, "hundredth": 0.01, "half": 0.5, "most": 0.95, "all": 1.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def not_extreme(pvalue):
    """The seeds are fixed, so a p-value is one number; neither end of its range is likely."""
    return 1e-4 < pvalue < 1 - 1e-4


def matrix_mask(pattern):
    mask = pattern.to_mask()
    return (mask if mask.dim() == 2 else mask.permute(0, 2, 3, 1)).flatten()


@pytest.mark.parametrize("complete", [False, True], ids=["stored_tiles", "complete_grid"])
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_distinct_inactive_positions_in_descending_order(shape, density, complete):
    mask = torch.rand(shape, generator=generator()) < density
    pattern = Pattern.from_mask(mask, complete=complete)
    inactive = pattern.numel - pattern.nnz
    for count in sorted({0, 1, 2, inactive // 3, inactive // 2, inactive // 2 + 1, inactive, inactive + 7}):
        active, positions, scores = uniform_candidates(pattern, count, generator(count))
        listed = min(count, inactive)
        assert (len(active), len(positions), len(scores)) == (pattern.nnz, listed, listed)
        assert active.dtype == scores.dtype == torch.float64
        assert positions.dtype == torch.int64
        assert len(positions.unique()) == listed
        assert not matrix_mask(pattern)[positions].any()
        assert torch.equal(scores, scores.sort(descending=True).values)
        assert (active <= 0).all()
        assert (scores <= 0).all()
        assert active.isfinite().all()
        assert scores.isfinite().all()


# Positions that are not kept are equally likely to become active, all subsets of them alike; with few of them
# listed, and with all.
@pytest.mark.parametrize(("active", "drop"), [(2, 1), (2, 2), (4, 2), (6, 1), (6, 3)])
@pytest.mark.parametrize("extra", [0, 2], ids=["as_few_as_possible", "two_more"])
@pytest.mark.parametrize(
    "shape",
    [(2, 4), pytest.param((2, 2, 1, 2), marks=pytest.mark.slow)],
    ids=["linear", "conv"],
)
def test_every_outcome_of_an_update_is_equally_likely(active, drop, extra, shape):
    mask = torch.zeros(8, dtype=torch.bool)
    mask[torch.randperm(8, generator=generator(3))[:active]] = True
    pattern = Pattern.from_mask(mask.view(shape))
    values = torch.arange(active) + 1.0
    kept = matrix_mask(Pattern.from_mask(pattern.unpack(values) > drop))
    random, draws = generator(10 * active + drop), 3000
    seen = Counter()
    for _ in range(draws):
        candidates = uniform_candidates(pattern, drop + extra, random)
        (new,) = update_topology([values], [pattern], [candidates], [drop], by="value")
        found = matrix_mask(new)
        assert found[kept].all()
        seen[tuple((found & ~kept).nonzero().flatten().tolist())] += 1
    possible = list(itertools.combinations((~kept).nonzero().flatten().tolist(), drop))
    assert set(seen) <= set(possible)
    assert not_extreme(scipy.stats.chisquare([seen[subset] for subset in possible]).pvalue)


@pytest.mark.parametrize("count", [5, 20], ids=["drawn", "enumerated"])
def test_the_backend_and_the_reference_agree_on_them(count):
    pattern = Pattern.from_mask(torch.rand(5, 7, generator=generator()) < 0.3)
    values = torch.randn(pattern.nnz, generator=generator(1))
    candidates = uniform_candidates(pattern, count, generator(2))
    drop = min(count, pattern.nnz)
    results = [
        update_topology([values], [pattern], [candidates], [drop], by="value", backend=backend)
        for backend in (None, "reference")
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("count", [5, 9], ids=["drawn", "enumerated"])
def test_scores_are_the_order_statistics_of_uniform_numbers(count):
    pattern = Pattern.from_mask(torch.arange(20).view(4, 5) % 4 == 0)
    inactive, draws, random = 15, 4000, generator(count)
    drawn = torch.stack([uniform_candidates(pattern, count, random).scores for _ in range(draws)]).exp()
    for i in range(count):
        expected = scipy.stats.beta(inactive - i, i + 1)
        assert not_extreme(scipy.stats.kstest(drawn[:, i].numpy(), expected.cdf).pvalue)
    # What makes them dependent: each is the one before times a number that is independent of it.
    ratios = (drawn[:, 1:] / drawn[:, :-1]).log() * (inactive - torch.arange(1, count))
    assert not_extreme(scipy.stats.kstest(-ratios.flatten().numpy(), "expon").pvalue)
    correlation = torch.corrcoef(torch.cat([drawn[:, :1].log(), ratios], 1).T)
    assert (correlation - torch.eye(count)).abs().max() < 5 / draws**0.5


def test_scores_of_active_positions_are_uniform():
    pattern = Pattern.from_mask(torch.arange(10000).view(100, 100) % 2 == 0)
    active = uniform_candidates(pattern, 1, generator(5)).active.exp().numpy()
    assert not_extreme(scipy.stats.kstest(active, "uniform").pvalue)


@pytest.mark.parametrize("count", [3, 8], ids=["drawn", "enumerated"])
def test_every_order_of_positions_is_equally_likely(count):
    pattern = Pattern.from_mask(torch.arange(12).view(3, 4) % 3 == 0)
    random, draws = generator(11), 4000
    drawn = torch.stack([uniform_candidates(pattern, count, random).positions for _ in range(draws)])
    inactive = (~matrix_mask(pattern)).nonzero().flatten()
    for i in range(count):
        seen = (drawn[:, i, None] == inactive).sum(0).numpy()
        assert seen.sum() == draws
        assert not_extreme(scipy.stats.chisquare(seen).pvalue)
    pairs = Counter(map(tuple, drawn[:, :2].tolist()))
    assert not_extreme(
        scipy.stats.chisquare([pairs[p] for p in itertools.permutations(inactive.tolist(), 2)]).pvalue
    )


def test_the_largest_of_many_do_not_become_equal():
    # 2**34 positions: as plain numbers, all of these would be within 2e-8 of 1.
    pattern = Pattern.random((2**17, 2**17), 1 - 2**-30, generator=generator())
    assert pattern.nnz == 16
    active, positions, scores = uniform_candidates(pattern, 200, generator(4))
    assert len(scores.unique()) == len(positions.unique()) == 200
    gaps = scores.diff(prepend=torch.zeros(1, dtype=torch.float64))
    scaled = (-gaps * (pattern.numel - pattern.nnz - torch.arange(200))).numpy()
    assert not_extreme(scipy.stats.kstest(scaled, "expon").pvalue)
    assert not_extreme(scipy.stats.kstest((positions.double() / pattern.numel).numpy(), "uniform").pvalue)


def test_the_generator_decides():
    pattern = Pattern.random((50, 60), 0.8, generator=generator())
    for count in (10, 2000):
        first, again = (uniform_candidates(pattern, count, generator(1)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first.positions, uniform_candidates(pattern, count, generator(2)).positions)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unnamed = uniform_candidates(pattern, 2000)
    assert all(torch.equal(a, b) for a, b in zip(unnamed, first, strict=True))


def test_a_large_weight_needs_no_dense_temporary():
    # 2**31 positions: a byte for each would be 2 GiB, a bit 256 MiB.
    code = """
from sparsekern.formats import Pattern
from sparsekern.methods.random_growth import uniform_candidates
def peak():
    # Linux's VmHWM: ru_maxrss of a new process begins with that of its parent.
    lines = open("/proc/self/status")
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

uniform_candidates(Pattern.random((64, 64), 0.5), 100)
pattern = Pattern.random((2**15, 2**16), 1 - 2**-20)
before = peak()
assert len(uniform_candidates(pattern, 10**5).positions) == 10**5
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 50


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(
            {"pattern": None}, TypeError, "pattern must be a sparsekern.Pattern, got None", id="pattern"
        ),
        pytest.param({"count": -1}, ValueError, "count must be at least 0, got -1", id="negative"),
        pytest.param({"count": 1.0}, TypeError, "count must be an integer, got 1.0", id="float"),
        pytest.param(
            {"generator": 0}, TypeError, "generator must be a torch.Generator or None", id="generator"
        ),
    ],
)
def test_bad_input(arguments, error, message):
    pattern = Pattern.from_mask(torch.eye(3, dtype=torch.bool))
    with pytest.raises(error, match=message):
        uniform_candidates(**{"pattern": pattern, "count": 1, **arguments})
