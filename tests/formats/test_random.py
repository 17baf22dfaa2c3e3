"""Random patterns: exact counts, every subset equally likely, the same for any number of threads."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch

from sparsekern import native
from sparsekern.formats import Pattern, active_count

SHAPES = {"1x1": (1, 1), "6x25": (6, 25), "100x300": (100, 300), "conv_20x7x3x3": (20, 7, 3, 3)}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def native_mask(shape, count, seed, block_size=1, tile_size=8):
    """The mask that native code draws, without torch's generator in between."""
    builder = native._C.pattern.random_builder(shape, count, block_size, seed, tile_size, native.threads())
    data = torch.empty(builder.words, dtype=torch.int32)
    builder.fill(data.data_ptr(), data.numel(), native.threads())
    return Pattern(data).to_mask()


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.3, 0.5, 0.75, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_count_is_exact(shape, sparsity):
    pattern = Pattern.random(shape, sparsity, generator=seeded(0))
    assert pattern.shape == shape
    assert pattern.nnz == active_count(sparsity, pattern.numel) == int(pattern.to_mask().sum())
    pattern.validate()


@pytest.mark.parametrize("count", [0, 1, 2, 17, 18, 19, 20, 9_999, 10_000, 10_001, 19_982, 19_999, 20_000])
def test_any_count_is_met_whichever_way_it_is_drawn(count):
    # Up to 19 of the 20,000 positions are drawn one by one; beyond half the complement is drawn.
    assert int(native_mask((100, 200), count, seed=7).sum()) == count


# All subsets of 6 positions with a given size: 6, 15, 20, 15 or 6 of them.
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_subset_is_equally_likely(count):
    draws = 6000
    weights = 2 ** torch.arange(6)
    subsets = [int((native_mask((2, 3), count, seed).flatten() * weights).sum()) for seed in range(draws)]
    _, observed = np.unique(subsets, return_counts=True)
    possible = scipy.special.comb(6, count, exact=True)
    assert len(observed) == possible
    # The seeds are fixed: this is one number, and it must not be extreme on either side.
    assert 1e-4 < scipy.stats.chisquare(observed).pvalue < 1 - 1e-4


@pytest.mark.parametrize(
    ("shape", "count", "draws"),
    [
        pytest.param((13, 17), 30, 3000, id="bitmap"),
        pytest.param((13, 17), 200, 3000, id="bitmap_complement"),
        pytest.param((32, 96), 3, 8000, id="list"),
        pytest.param((32, 96), 32 * 96 - 3, 8000, id="list_complement"),
    ],
)
def test_every_position_is_equally_likely(shape, count, draws):
    numel = shape[0] * shape[1]
    hits = np.zeros(numel)
    for seed in range(draws):
        hits += native_mask(shape, count, seed).flatten().numpy()
    expected = draws * count / numel
    # A draw gives each position the variance p (1 - p), and a fixed sum: numel - 1 degrees of freedom.
    variance = expected * (1 - count / numel) * numel / (numel - 1)
    statistic = ((hits - expected) ** 2 / variance).sum()
    assert 1e-4 < scipy.stats.chi2(numel - 1).cdf(statistic) < 1 - 1e-4


def test_neighbours_are_independent_in_a_large_pattern():
    mask = Pattern.random((1000, 2000), 0.7, generator=seeded(3)).to_mask().float()
    expected = 0.3**2
    # 64 positions share a word of the bitmap, 65536 a chunk with one stream of random numbers.
    for step in (1, 2, 64, 2000, 65536):
        flat = mask.flatten()
        both = float((flat[:-step] * flat[step:]).mean())
        assert abs(both - expected) < 5 * (expected * (1 - expected) / flat.numel()) ** 0.5


def test_the_generator_decides():
    first = Pattern.random((50, 60), 0.8, generator=seeded(1))
    assert Pattern.random((50, 60), 0.8, generator=seeded(1)) == first
    assert Pattern.random((50, 60), 0.8, generator=seeded(2)) != first
    generator = seeded(1)
    again = Pattern.random((50, 60), 0.8, generator=generator)
    assert again == first
    assert Pattern.random((50, 60), 0.8, generator=generator) != first


def test_without_a_generator_the_global_one_decides():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = Pattern.random((50, 60), 0.8)
        second = Pattern.random((50, 60), 0.8)
        torch.manual_seed(5)
        assert Pattern.random((50, 60), 0.8) == first
    assert first != second


@pytest.mark.parametrize("sparsity", [0.1, 0.9, 0.9999])
def test_the_number_of_threads_changes_nothing(monkeypatch, sparsity):
    patterns = []
    for threads in (1, 2, 6):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        patterns.append(Pattern.random((2000, 3000), sparsity, generator=seeded(0)))
    assert patterns[0] == patterns[1] == patterns[2]


@pytest.mark.parametrize(
    ("count", "block_size", "digest"),
    [
        pytest.param(5, 1, "9f3cbe7a8a91fa1f", id="list"),
        pytest.param(6000, 1, "42136c2bcedd7570", id="bitmap"),
        pytest.param(24000, 1, "6d1d97c499494eb7", id="bitmap_complement"),
        pytest.param(11, 32, "f570bad4067cc927", id="blocks"),
    ],
)
def test_a_seed_gives_the_same_pattern_on_every_platform(count, block_size, digest):
    mask = native_mask((100, 300), count, seed=0x123456789ABCDEF0, block_size=block_size)
    assert hashlib.sha256(np.packbits(mask.numpy())).hexdigest()[:16] == digest


@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize(
    "shape", [(256, 384), (100, 300), (31, 500), (70, 20, 3, 3)], ids=["even", "ragged", "flat", "conv"]
)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_whole_blocks_are_active(shape, block_size, sparsity):
    pattern = Pattern.random(shape, sparsity, block_size=block_size, generator=seeded(0))
    mask = pattern.to_mask()
    matrix = mask if mask.dim() == 2 else mask.permute(0, 2, 3, 1).reshape(len(mask), -1)
    blocks = [block for band in matrix.split(block_size) for block in band.split(block_size, dim=1)]
    assert all(bool(block.all()) or not bool(block.any()) for block in blocks)
    assert sum(bool(block.all()) for block in blocks) == active_count(sparsity, len(blocks))
    assert block_size % pattern.tile_size == 0
    pattern.validate()


def test_sizes_may_be_numpy_integers():
    numpy = Pattern.random(
        (64, np.int64(96)), 0.5, block_size=np.int64(32), tile_size=np.int32(16), generator=seeded(0)
    )
    assert numpy == Pattern.random((64, 96), 0.5, block_size=32, tile_size=16, generator=seeded(0))


def test_every_block_is_equally_likely():
    draws = 4000
    hits = np.zeros((2, 3))
    for seed in range(draws):
        hits += native_mask((60, 70), 2, seed, block_size=32).numpy()[::32, ::32]
    assert 1e-4 < scipy.stats.chisquare(hits.flatten()).pvalue < 1 - 1e-4


def test_a_default_device_does_not_move_the_pattern():
    with torch.device("meta"):
        pattern = Pattern.random((64, 64), 0.5)
        assert pattern.device.type == pattern.to_mask().device.type == pattern.fan_in().device.type == "cpu"


def test_a_large_pattern_needs_no_dense_temporary():
    # 2**29 positions: a byte for each would be 512 MiB, a bit 64 MiB, and the pattern itself is 82 MiB.
    code = """
from sparsekern.formats import Pattern
def peak():
    # Linux's VmHWM: ru_maxrss of a new process begins with that of its parent.
    lines = open("/proc/self/status")
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

Pattern.random((64, 64), 0.5)
before = peak()
pattern = Pattern.random((32768, 16384), 0.99)
assert pattern.nnz == round(0.01 * pattern.numel), pattern
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 250


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"sparsity": True}, TypeError, "sparsity must be a number in", id="bool"),
        pytest.param({"sparsity": 1.0}, ValueError, r"sparsity must be in \[0, 1\)", id="one"),
        pytest.param({"shape": (3,)}, ValueError, r"shape must be \(out, in\) or", id="1d"),
        pytest.param({"shape": (3, 0)}, ValueError, "dimensions of at least 1", id="empty"),
        pytest.param(
            {"shape": (3, 2.0)}, TypeError, "shape must be a sequence of 2 or 4 integers", id="float_shape"
        ),
        pytest.param(
            {"shape": (2**31, 2)}, ValueError, r"at most 2\*\*31 - 1 rows and columns", id="too_large"
        ),
        pytest.param({"block_size": 64.0}, TypeError, "32, 64 or 128, got 64.0", id="block_float"),
        pytest.param(
            {"block_size": 16}, ValueError, "block_size must be 32, 64 or 128, got 16", id="block_16"
        ),
        pytest.param(
            {"block_size": 32, "tile_size": 64},
            ValueError,
            "block_size must be a multiple of the tile size 64, got 32",
            id="block_smaller_than_tile",
        ),
        pytest.param({"tile_size": 7}, ValueError, "tile_size must be 8, 16, 32 or 64, got 7", id="tile_7"),
        pytest.param(
            {"generator": 0}, TypeError, "generator must be a torch.Generator or None, got 0", id="generator"
        ),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        Pattern.random(**{"shape": (100, 100), "sparsity": 0.5, **arguments})
