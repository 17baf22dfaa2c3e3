"""Initialization: the variance of every neuron's weights, measured on masks with very different fans."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sparsekern import init
from sparsekern.nn import SparseConv2d, SparseLinear

# Two-sided; with the fixed seeds below a right implementation passes every time it is run.
SIGNIFICANCE = 1e-6


def heterogeneous_mask(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    """Row densities from 2 % to 90 % and column densities likewise, so that fans differ by large factors."""
    generator = torch.Generator().manual_seed(seed)
    density = torch.linspace(0.02, 1, rows)[:, None] * torch.linspace(1, 0.1, cols)[None, :]
    return torch.rand(rows, cols, generator=generator) < density


def assert_variance(values: torch.Tensor, variance: torch.Tensor, distribution: str) -> None:
    """Mean 0 and the expected variance, by a bound that follows from the count and the fourth moment."""
    standardized = values.double() / variance.double().sqrt()
    count = standardized.numel()
    quantile = stats.norm.isf(SIGNIFICANCE / 2)
    assert abs(standardized.mean().item()) < quantile / math.sqrt(count)
    # Var[x^2] of a standardized variable is its kurtosis - 1: 4/5 if uniform, 2 if normal.
    spread = math.sqrt({"uniform": 0.8, "normal": 2.0}[distribution] / count)
    assert abs(standardized.square().mean().item() - 1) < quantile * spread


def linear(mask: torch.Tensor, storage: str = "compact", **keywords) -> SparseLinear:
    return SparseLinear(mask.shape[1], mask.shape[0], mask=mask, storage=storage, init=None, **keywords)


def dense_variance(mask: torch.Tensor, mode: str, groups: int = 1) -> torch.Tensor:
    """The oracle: Equations 1 and 2 on the dense mask, one entry for each weight, channel by channel."""
    counts = mask.reshape(*mask.shape[:2], -1).sum(-1)
    outputs, inputs = counts.shape
    fan = torch.empty(outputs, inputs, dtype=torch.float64)
    for group in torch.arange(outputs).chunk(groups):
        for o in group:
            fan_in, fan_out = counts[o].sum().double(), counts[group].sum(0).double()
            fan[o] = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    variance = 1 / fan.clamp(min=1)
    return variance.view(outputs, inputs, *[1] * (mask.dim() - 2)).expand(mask.shape)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((40, 70), 1), ((12, 6, 3, 3), 1), ((12, 2, 3, 5), 3), ((8, 1, 3, 3), 8)],
    ids=["linear", "conv", "grouped conv", "depthwise conv"],
)
def test_per_neuron_variance_of_every_weight(shape, groups, mode):
    mask = heterogeneous_mask(shape[0], math.prod(shape[1:])).view(shape)
    layer = (
        linear(mask)
        if len(shape) == 2
        else SparseConv2d(shape[1] * groups, shape[0], shape[2:], groups=groups, mask=mask)
    )
    variance = init.per_neuron_variance(layer.pattern, mode=mode, groups=groups)
    expected = layer.pattern.pack(dense_variance(mask, mode, groups).contiguous())
    torch.testing.assert_close(variance.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_per_neuron_draws_that_variance_in_every_row_and_column(mode, distribution, storage):
    mask = heterogeneous_mask(64, 1500)
    layer = linear(mask, storage)
    generator = torch.Generator().manual_seed(1)
    init.per_neuron_(layer, mode=mode, distribution=distribution, generator=generator)
    weight, variance = layer.to_dense().detach(), dense_variance(mask, mode)
    assert_variance(weight[mask], variance[mask], distribution)
    for row in range(0, 64, 7):
        assert_variance(weight[row][mask[row]], variance[row][mask[row]], distribution)
    dense_columns = mask[:, :500]
    assert_variance(weight[:, :500][dense_columns], variance[:, :500][dense_columns], distribution)


def test_the_bound_tells_a_standard_deviation_from_a_variance():
    mask = heterogeneous_mask(64, 1500)
    layer = init.per_neuron_(linear(mask), mode="fan_in", distribution="normal")
    variance = init.per_neuron_variance(layer.pattern, mode="fan_in")
    mistaken = torch.randn(layer.pattern.nnz) * variance
    with pytest.raises(AssertionError):
        assert_variance(mistaken, variance, "normal")


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_per_neuron_on_a_grouped_convolution(distribution):
    mask = heterogeneous_mask(24, 8 * 5 * 5).view(24, 8, 5, 5)
    layer = SparseConv2d(24, 24, 5, groups=3, mask=mask, init=None)
    init.per_neuron_(layer, distribution=distribution, generator=torch.Generator().manual_seed(2))
    assert_variance(layer.to_dense().detach()[mask], dense_variance(mask, "fan_avg", 3)[mask], distribution)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("glorot", 2 / (1500 + 64)), ("kaiming", 1 / (3 * 1500))],
    ids=["glorot", "kaiming"],
)
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_dense_ignores_the_mask(scheme, expected, distribution):
    layer = linear(heterogeneous_mask(64, 1500))
    init.dense_(layer, scheme=scheme, distribution=distribution, generator=torch.Generator().manual_seed(3))
    values = layer.values.detach()
    assert_variance(values, torch.full_like(values, expected), distribution)
    if distribution == "uniform":
        limit = math.sqrt(3 * expected)
        assert 0.99 * limit < values.abs().max().item() <= limit * (1 + 1e-6)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_per_layer_scales_by_the_overall_density(distribution):
    layer = linear(heterogeneous_mask(64, 1500))
    init.per_layer_(layer, distribution=distribution, generator=torch.Generator().manual_seed(4))
    density = layer.pattern.nnz / (64 * 1500)
    expected = torch.full((layer.pattern.nnz,), 2 / (1500 + 64) / density)
    assert_variance(layer.values.detach(), expected, distribution)


@pytest.mark.parametrize("name", ["dense_", "per_layer_"])
def test_conv_fans_are_those_of_one_group(name):
    layer = SparseConv2d(32, 64, 3, groups=4, sparsity=0.0, init=None)
    getattr(init, name)(layer, generator=torch.Generator().manual_seed(5))
    variance = 2 / (8 * 9 + 16 * 9)
    assert_variance(layer.values.detach(), torch.full((64 * 8 * 9,), variance), "uniform")


@pytest.mark.parametrize("groups", [1, 4])
def test_all_three_agree_on_a_dense_mask(groups):
    def draw(name):
        layer = SparseConv2d(8, 12, 3, groups=groups, sparsity=0.0, init=None)
        return getattr(init, name)(layer, generator=torch.Generator().manual_seed(6)).values.detach()

    torch.testing.assert_close(draw("per_layer_"), draw("dense_"))
    torch.testing.assert_close(draw("per_neuron_"), draw("dense_"))


@pytest.mark.parametrize("name", ["dense_", "per_layer_", "per_neuron_"])
def test_gain_multiplies_the_variance(name):
    layer, mask = linear, heterogeneous_mask(20, 30)
    one = getattr(init, name)(layer(mask), generator=torch.Generator().manual_seed(7))
    two = getattr(init, name)(layer(mask), gain=2.0, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(two.values, one.values * math.sqrt(2))


@pytest.mark.parametrize("name", ["dense_", "per_layer_", "per_neuron_"])
@pytest.mark.parametrize("gain", [np.float32(2), np.int64(2)], ids=["float32", "int64"])
def test_gain_may_be_a_number_of_numpy(gain, name):
    mask = heterogeneous_mask(20, 30)
    numpy = getattr(init, name)(linear(mask), gain=gain, generator=torch.Generator().manual_seed(7))
    plain = getattr(init, name)(linear(mask), gain=2, generator=torch.Generator().manual_seed(7))
    assert torch.equal(numpy.values, plain.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["dense_", "per_layer_", "per_neuron_"])
def test_both_storages_get_the_same_weights_and_zeros_elsewhere(name, dtype):
    mask = heterogeneous_mask(30, 50)
    compact, masked = linear(mask, dtype=dtype), linear(mask, "masked", dtype=dtype)
    with torch.no_grad():
        masked.weight.fill_(float("nan"))
    for layer in (compact, masked):
        parameter = layer.stored_weight
        assert getattr(init, name)(layer, generator=torch.Generator().manual_seed(8)) is layer
        assert layer.stored_weight is parameter
        assert parameter.dtype == dtype
    assert torch.equal(compact.to_dense(), masked.weight)
    assert not masked.weight[~mask].any()


def test_an_empty_neuron_and_an_empty_layer():
    mask = torch.zeros(4, 5, dtype=torch.bool)
    for name in ("dense_", "per_layer_", "per_neuron_"):
        assert getattr(init, name)(linear(mask)).values.shape == (0,)
    mask[1, 2] = True
    variance = init.per_neuron_variance(linear(mask).pattern)
    assert variance.tolist() == [1.0]


def test_bias_is_left_alone():
    layer = SparseLinear(6, 4, sparsity=0.5)
    with torch.no_grad():
        layer.bias.fill_(3)
    init.per_neuron_(layer)
    assert layer.bias.tolist() == [3] * 4


def test_a_meta_layer_is_left_alone():
    layer = SparseLinear(6, 4, sparsity=0.5, device="meta")
    assert init.per_neuron_(layer).values.is_meta


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda layer: init.per_neuron_(torch.nn.Linear(2, 2)),
            TypeError,
            r"layer must .*SparseLinear.* got Linear",
        ),
        (lambda layer: init.per_neuron_(layer, mode="fan"), ValueError, r"mode must .*'fan_avg'.* got 'fan'"),
        (lambda layer: init.per_neuron_(layer, gain=0), ValueError, r"gain must .*positive.* got 0"),
        (lambda layer: init.per_neuron_(layer, gain=math.nan), ValueError, r"gain must .* got nan"),
        (lambda layer: init.per_layer_(layer, gain=True), TypeError, r"gain must .* got True"),
        (lambda layer: init.per_layer_(layer, gain="2"), TypeError, r"gain must .* got '2'"),
        (lambda layer: init.dense_(layer, scheme=None), TypeError, r"scheme must .*'kaiming', got None"),
        (lambda layer: init.dense_(layer, generator=3), TypeError, r"generator must be .*got 3"),
        (lambda layer: init.per_neuron_variance(layer), TypeError, r"pattern must be .*got SparseLinear"),
        (
            lambda layer: init.dense_(layer, distribution="gamma"),
            ValueError,
            r"distribution must .* got 'gamma'",
        ),
        (lambda layer: init.dense_(layer, scheme="he"), ValueError, r"scheme must .*'kaiming'.* got 'he'"),
    ],
    ids=[
        "dense layer",
        "mode",
        "zero gain",
        "NaN gain",
        "bool gain",
        "string gain",
        "no scheme",
        "generator",
        "no pattern",
        "distribution",
        "scheme",
    ],
)
def test_bad_arguments_change_nothing(call, error, message):
    layer = SparseLinear(6, 4, sparsity=0.5)
    before = layer.values.detach().clone()
    with pytest.raises(error, match=message):
        call(layer)
    assert torch.equal(layer.values, before)
