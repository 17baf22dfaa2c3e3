"""Rooflines: bytes and operations against examples computed by hand, and against real patterns."""

from __future__ import annotations

import math

import pytest

import sparsekern as sk
from benchmarks import roofline
from benchmarks.gpu import bars
from benchmarks.networks import LENET5, NETWORKS, RESNET50, VGG16, ConvLayer, LinearLayer
from benchmarks.roofline import (
    H200,
    Limits,
    Sizes,
    Work,
    dense_work,
    grow_work,
    product_work,
    transfer_work,
    unpack_work,
    update_work,
)

LAYER = LinearLayer("transformer", 16, 8192, 8192)
SIZES = Sizes.of((8192, 8192), 0.9)
# 128 x 128 tiles: 512 bytes of bits, 128 of row offsets, 8 + 4 + 4 of indices; 2 x 128 x 4 bytes of pointers.
PATTERN = 16384 * 656 + 1024


def test_sizes_of_a_random_pattern():
    assert Sizes(8192, 8192, 64, 16384, 6710886) == SIZES
    assert SIZES.pattern_bytes == PATTERN


def test_sizes_of_blocks():
    # 64 x 64 blocks of 128, a tenth of which is 410, with 4 tiles of 64 each.
    assert Sizes.of((8192, 8192), 0.9, 128) == Sizes(8192, 8192, 64, 1640, 410 * 16384)


@pytest.mark.parametrize(
    ("shape", "sparsity", "block"),
    [
        ((1024, 2048), 0.9, None),
        ((96, 70, 3, 3), 0.8, None),
        ((84, 120), 0.5, None),
        ((1024, 512), 0.75, 128),
    ],
)
def test_sizes_are_those_of_real_patterns(shape, sparsity, block):
    pattern = sk.Pattern.random(shape, sparsity, block_size=block)
    sizes = Sizes.of(shape, sparsity, block)
    assert (sizes.tiles, sizes.nnz, sizes.tile_size) == (pattern.num_tiles, pattern.nnz, pattern.tile_size)
    # The header, and what aligns each of seven sections, come on top.
    assert 0 <= pattern.nbytes - sizes.pattern_bytes <= 16 * 4 + 8 * 16


def test_a_product_of_few_samples_is_bound_by_bytes():
    work = product_work(LAYER, SIZES, "bfloat16")
    # x and y are 16 x 8192, the values two bytes each.
    assert work.bytes == 2 * (2 * 16 * 8192 + 6710886) + PATTERN
    assert work.useful == 2 * 16 * 6710886
    assert work.executed == 2 * 16 * 8192 * 8192
    assert work.is_bound_by_memory(H200, "bfloat16")
    assert work.seconds(H200, "bfloat16") == pytest.approx(24694988 / 4.8e12)


def test_a_dense_product_of_many_samples_is_bound_by_operations():
    work = dense_work(LinearLayer("transformer", 4096, 8192, 8192), "bfloat16")
    assert work == Work(2 * (2 * 4096 * 8192 + 8192**2), 2 * 4096 * 8192**2, 2 * 4096 * 8192**2)
    assert not work.is_bound_by_memory(H200, "bfloat16")
    assert work.seconds(H200, "bfloat16") == pytest.approx(549755813888 / 790e12)


def test_a_convolution_multiplies_once_a_pixel():
    layer = ConvLayer("ResNet-50", 64, 256, 28, 256, 3, stride=2, padding=1)
    assert layer.output_shape == (64, 256, 14, 14)
    assert layer.samples == 64 * 14 * 14
    work = dense_work(layer, "float32")
    assert work.useful == 2 * 12544 * 256 * 256 * 9
    assert work.bytes == 4 * (64 * 256 * 28 * 28 + 64 * 256 * 14 * 14 + 256 * 256 * 9)


def test_ops_that_move_weights():
    dense = 8192 * 8192
    assert unpack_work(SIZES, "float32").bytes == 4 * (dense + 6710886) + PATTERN
    assert transfer_work(SIZES, "bfloat16").bytes == 4 * 6710886 + 2 * PATTERN
    assert update_work(SIZES, "float32").bytes == 4 * (dense + 6710886) + 2 * PATTERN


def test_growing_computes_the_gradient_twice():
    work = grow_work(LAYER, SIZES, 1000, "bfloat16")
    assert work.executed == 2 * 2 * 16 * 8192 * 8192
    assert work.bytes == 2 * (2 * 2 * 16 * 8192 + PATTERN) + 12 * 1000


def test_the_longer_of_the_two_times_counts():
    limits = Limits("a GPU", 1e9, {"float32": 1e12})
    assert Work(10**9, 0, 10**11).seconds(limits, "float32") == 1.0
    assert Work(10**6, 0, 10**12).seconds(limits, "float32") == 1.0
    assert not Work(10**6, 0, 10**12).is_bound_by_memory(limits, "float32")


def test_networks_are_those_of_the_literature():
    weights = [layer.weight_shape for layer in LENET5]
    assert sum(math.prod(shape) for shape in weights) == 44190
    assert [layer.output_size for layer in LENET5[:2]] == [24, 8]
    assert all(layer.output_size == layer.size for layer in VGG16)
    assert [layer.output_size for layer in RESNET50[:-1]] == [112, 56, 56, 28, 28, 14, 14, 14, 14, 7, 7]
    widths = {width for layer in NETWORKS["transformer"] for width in layer.weight_shape}
    assert {2048, 4096, 8192} <= widths
    assert {1, 16384} <= {layer.tokens for layer in NETWORKS["transformer"]}


def names(*arguments):
    return [(bar.name, bar.measure, bar.wanted) for bar in bars.product_bars(*arguments)]


def test_bars():
    large = LinearLayer("transformer", 4096, 4096, 4096)
    assert names(large, "bfloat16", 0.9, None) == [(bars.UNSTRUCTURED, "speed-up", 0.9)]
    assert names(large, "float32", 0.95, None) == [(bars.UNSTRUCTURED_FLOAT32, "speed-up", 5.0)]
    ((name, _, wanted),) = names(large, "bfloat16", 0.9, 128)
    assert (name, round(wanted, 6)) == (bars.BLOCKS, 9.0)
    assert names(large, "bfloat16", 0.2, 64) == [(bars.BLOCKS_BREAK_EVEN, "speed-up", 1.0)]
    assert [bar[1:] for bar in names(LAYER, "bfloat16", 0.9, None)] == [("roofline", 0.7), ("speed-up", 4.0)]
    assert names(RESNET50[1], "bfloat16", 0.9, None) == [(bars.CONV, "speed-up", 0.8)]
    assert names(RESNET50[1], "float32", 0.9, None) == names(LENET5[0], "bfloat16", 0.9, None) == []
    assert names(large, "bfloat16", 0.5, None) == names(LAYER, "bfloat16", 0.8, None) == []


@pytest.mark.parametrize(
    ("bar", "reached", "met"),
    [
        (bars.TOPOLOGY, 150.0, True),
        (bars.TOPOLOGY, 151.0, False),
        (bars.MEMORY, 9.0, True),
        (bars.MEMORY, 8.9, False),
        (bars.GROW, 2.1, False),
    ],
)
def test_fewer_or_more_is_better(bar, reached, met):
    assert bar.met(reached) is met
    assert bar.record(reached) == {
        "bar": bar.name,
        "measure": bar.measure,
        "wanted": bar.wanted,
        "reached": reached,
        "met": met,
    }


def test_the_command_prints_every_layer_and_says_that_nothing_was_measured(capsys):
    roofline.main([])
    text = capsys.readouterr().out
    assert text.count("computed, not measured") == 2 * len(NETWORKS) + 1
    assert all(layer.name in text for layers in NETWORKS.values() for layer in layers)
    assert max(map(len, text.splitlines())) <= 120
