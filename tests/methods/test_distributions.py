"""Layer sparsities: formulas by hand, exact totals, and layers that saturate."""

from __future__ import annotations

import math

import pytest

from sparsekern.methods.distributions import layer_sparsities
from sparsekern.nn.distributions import asked_sparsities

LENET = [(6, 1, 5, 5), (16, 6, 5, 5), (120, 256), (84, 120), (10, 84)]
RESNET_LIKE = [(64, 3, 7, 7), (64, 64, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1), (512, 512, 3, 3), (1000, 2048)]


def counts(shapes, sparsities):
    sizes = [math.prod(shape) for shape in shapes]
    exact = [(1 - s) * n for s, n in zip(sparsities, sizes, strict=True)]
    assert all(abs(e - round(e)) < 1e-6 for e in exact)
    return [round(e) for e in exact]


def test_uniform_by_hand():
    assert layer_sparsities([(10, 10), (20, 30)], 0.75, "uniform") == [0.75, 0.75]


def test_uniform_rounds_by_largest_remainder():
    # 2.7, 2.7 and 1.2 weights, 6.6 -> 7 in all: 2 + 2 + 1, and one more for both remainders of 0.7.
    assert counts([(3, 3), (3, 3), (2, 2)], layer_sparsities([(3, 3), (3, 3), (2, 2)], 0.7)) == [3, 3, 1]


def test_er_by_hand():
    # Scales 20/100 and 50/400: quotas are eps * 20 and eps * 50, of 140 in all: eps = 2.
    shapes = [(10, 10), (40, 10)]
    assert counts(shapes, layer_sparsities(shapes, 1 - 140 / 500, "er")) == [40, 100]


def test_er_of_convolutions_ignores_the_kernel():
    # Scales 4/4 and 12/32, sizes 16 and 288: eps * (16 + 108) = 62, so eps = 1/2.
    shapes = [(2, 2, 2, 2), (8, 4, 3, 3)]
    assert counts(shapes, layer_sparsities(shapes, 1 - 62 / 304, "er")) == [8, 54]


def test_erk_by_hand():
    # Quotas are eps * (sum of the shape): 8 + 18 = 26, of 52 in all: eps = 2, and 16 of 16 saturates exactly.
    shapes = [(2, 2, 2, 2), (8, 4, 3, 3)]
    assert counts(shapes, layer_sparsities(shapes, 1 - 52 / 304, "erk")) == [16, 36]
    # With 78 in all eps is 3: the first layer would hold 24 of 16, becomes dense, and the second takes 62.
    assert counts(shapes, layer_sparsities(shapes, 1 - 78 / 304, "erk")) == [16, 62]


def test_erk_saturation_cascades():
    # Quotas eps * (5, 7, 20) on sizes 6, 12 and 100. 60 in all: eps = 1.875 makes the first dense (9.4 of 6);
    # the 54 left give eps = 2: the second would hold 14 of 12; the third takes the 42 that remain.
    shapes = [(2, 3), (3, 4), (10, 10)]
    assert counts(shapes, layer_sparsities(shapes, 1 - 60 / 118, "erk")) == [6, 12, 42]


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.999])
@pytest.mark.parametrize("shapes", [LENET, RESNET_LIKE], ids=["LeNet-5", "ResNet-like"])
def test_the_total_is_exact(shapes, sparsity, distribution):
    sparsities = layer_sparsities(shapes, sparsity, distribution)
    active, total = counts(shapes, sparsities), sum(math.prod(shape) for shape in shapes)
    assert sum(active) == round((1 - sparsity) * total)
    assert all(1 <= n <= math.prod(shape) for n, shape in zip(active, shapes, strict=True))
    assert all(0 <= s < 1 for s in sparsities)


@pytest.mark.parametrize("distribution", ["er", "erk"])
def test_densities_are_proportional_to_the_scales(distribution):
    def scale(shape):
        counted = shape if distribution == "erk" else shape[:2]
        return sum(counted) / math.prod(counted)

    densities = [1 - s for s in layer_sparsities(RESNET_LIKE, 0.95, distribution)]
    ratios = [d / scale(shape) for d, shape in zip(densities, RESNET_LIKE, strict=True) if d < 1]
    assert len(ratios) >= 3
    # One weight of rounding in the smallest layer is the largest deviation.
    assert max(ratios) / min(ratios) < 1 + 1 / 500


def test_er_and_erk_agree_without_convolutions():
    shapes = [(300, 784), (100, 300), (10, 100)]
    assert layer_sparsities(shapes, 0.9, "er") == layer_sparsities(shapes, 0.9, "erk")


def test_every_layer_keeps_one_weight():
    shapes = [(2, 2), (1000, 1000), (3, 3)]
    assert counts(shapes, layer_sparsities(shapes, 0.9999, "uniform")) == [1, 98, 1]
    # Three layers cannot share 2 weights; one each is the least.
    assert counts(shapes, layer_sparsities(shapes, 1 - 2e-6, "erk")) == [1, 1, 1]


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_what_was_asked_is_not_rounded(distribution):
    shapes = [(3, 3), (3, 3, 2, 2), (2, 5)]
    asked = asked_sparsities(shapes, 0.7, distribution)
    sizes = [math.prod(shape) for shape in shapes]
    quotas = [(1 - s) * size for s, size in zip(asked, sizes, strict=True)]
    # 16.5 of 55 weights: no choice of whole weights has this sparsity.
    assert sum(quotas) == pytest.approx(0.3 * sum(sizes), rel=1e-12)
    assert any(abs(quota - round(quota)) > 0.05 for quota in quotas)
    got = counts(shapes, layer_sparsities(shapes, 0.7, distribution))
    assert all(abs(n - quota) < 1 for n, quota in zip(got, quotas, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([(2, 2)], 1.0), ValueError, "sparsity"),
        (([(2, 2)], -0.1), ValueError, "sparsity"),
        (([(2, 2)], math.nan), ValueError, "sparsity"),
        (([(2, 2)], True), TypeError, "sparsity"),
        (([(2, 2)], "0.9"), TypeError, "sparsity"),
        (([(2, 2)], 0.5, "ERK"), ValueError, r"distribution must .*'erk'.* got 'ERK'"),
        (([], 0.5), ValueError, "shapes must .*at least one"),
        ((5, 0.5), TypeError, "shapes must be a sequence of shapes, got 5"),
        (([(2, 2)], 0.5, None), TypeError, r"distribution must .*'erk', got None"),
        (([(2, 2), (3,)], 0.5), ValueError, r"shapes\[1\]"),
        (([(2, 0)], 0.5), ValueError, r"shapes\[0\]"),
    ],
    ids=[
        "one",
        "negative",
        "NaN",
        "bool",
        "str",
        "distribution",
        "no layer",
        "no shapes",
        "no distribution",
        "1-D",
        "empty layer",
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        layer_sparsities(*arguments)
