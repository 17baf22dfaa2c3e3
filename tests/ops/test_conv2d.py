"""conv2d and its gradients against dense PyTorch, on every instruction set, with poisoned outputs."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from sparsekern.formats import Pattern
from sparsekern.ops import conv2d, conv2d_grad_input, conv2d_grad_values

pytestmark = pytest.mark.usefixtures("poisoned", "isa")

RESULTS = ["y", "grad_x", "grad_values", "grad_bias"]

# Shape of x, shape of the weight, geometry.
CASES = {
    "3x3": ((2, 5, 9, 8), (7, 5, 3, 3), {}),
    "3x3, padding 1": ((2, 5, 9, 8), (7, 5, 3, 3), {"padding": 1}),
    "padding beyond the kernel": ((2, 3, 4, 5), (4, 3, 2, 2), {"padding": (3, 4)}),
    "5x2 kernel": ((1, 3, 11, 7), (6, 3, 5, 2), {"padding": (2, 0)}),
    "stride 2": ((2, 4, 9, 10), (6, 4, 3, 3), {"stride": 2, "padding": 1}),
    "unequal strides": ((2, 4, 9, 13), (6, 4, 3, 3), {"stride": (1, 3), "padding": (0, 2)}),
    "stride beyond the kernel": ((2, 3, 14, 15), (5, 3, 2, 3), {"stride": (5, 4)}),
    "rows and columns that no tap reaches": ((1, 2, 10, 10), (3, 2, 2, 2), {"stride": 4}),
    "dilation 2": ((2, 3, 11, 10), (5, 3, 3, 3), {"dilation": 2, "padding": 2}),
    "unequal dilations": ((2, 3, 12, 9), (5, 3, 3, 2), {"dilation": (1, 4), "padding": (1, 0)}),
    "stride 2, dilation 3": ((2, 3, 15, 14), (5, 3, 3, 3), {"stride": 2, "dilation": 3, "padding": 3}),
    "stride 3, dilation 2": ((1, 3, 15, 9), (5, 3, 3, 3), {"stride": 3, "dilation": 2, "padding": 1}),
    "kernel larger than the input": ((2, 3, 2, 3), (4, 3, 5, 4), {"padding": (2, 1)}),
    "kernel of the padded input's size": ((2, 3, 4, 4), (4, 3, 6, 6), {"padding": 1}),
    "1x1": ((3, 20, 5, 6), (17, 20, 1, 1), {}),
    "1x1, stride 2": ((3, 20, 5, 6), (17, 20, 1, 1), {"stride": 2}),
    "1x1, padding 1": ((1, 9, 3, 3), (8, 9, 1, 1), {"padding": 1}),
    "1x1, 12 pixels": ((3, 40, 4, 3), (17, 40, 1, 1), {}),
    "1x1, 16 pixels": ((3, 40, 4, 4), (17, 40, 1, 1), {}),
    "1x1, 24 pixels": ((3, 40, 6, 4), (17, 40, 1, 1), {}),
    "1x1, 72 pixels": ((3, 40, 8, 9), (17, 40, 1, 1), {}),
    "1x1, 144 pixels": ((3, 40, 12, 12), (17, 40, 1, 1), {}),
    "1x1, only padding is read": ((2, 3, 1, 1), (4, 3, 1, 1), {"stride": 2, "padding": 1}),
    "1x1, rows of padding alone are read": (
        (2, 3, 1, 5),
        (4, 3, 1, 1),
        {"stride": (2, 1), "padding": (1, 0)},
    ),
    "one row of 31 under a stride and padding of 2 and 1": (
        (1, 1, 1, 31),
        (8, 1, 2, 2),
        {"stride": 2, "padding": 1},
    ),
    "one row under a tall kernel": (
        (5, 8, 1, 27),
        (12, 8, 4, 5),
        {"stride": (4, 3), "padding": (3, 4)},
    ),
    "one pixel": ((4, 6, 1, 1), (5, 6, 1, 1), {}),
    "one row": ((2, 4, 1, 33), (5, 4, 1, 3), {"padding": (0, 1)}),
    "one column": ((2, 4, 33, 1), (5, 4, 3, 1), {"padding": (1, 0)}),
    "one channel in and out": ((3, 1, 7, 7), (1, 1, 3, 3), {}),
    "groups 2": ((2, 6, 8, 7), (10, 3, 3, 3), {"groups": 2, "padding": 1}),
    "groups 3, stride 2, dilation 2": (
        (2, 6, 11, 12),
        (9, 2, 3, 2),
        {"groups": 3, "stride": 2, "dilation": 2, "padding": 1},
    ),
    "depthwise": ((2, 11, 8, 7), (11, 1, 3, 3), {"groups": 11, "padding": 1}),
    "depthwise, two outputs each": ((2, 5, 8, 7), (10, 1, 3, 3), {"groups": 5, "stride": 2}),
    "one image": ((1, 3, 8, 8), (4, 3, 3, 3), {}),
    "17 images": ((17, 3, 6, 6), (4, 3, 3, 3), {}),
    "no images": ((0, 3, 8, 8), (4, 3, 3, 3), {"padding": 1}),
    "more pixels than a panel": ((2, 2, 21, 23), (3, 2, 3, 3), {"padding": 1}),
}
LARGE = {
    "tap by tap": ((2, 64, 9, 9), (130, 64, 3, 3), {"padding": 1}),
    "groups across tiles": ((2, 36, 7, 7), (90, 12, 3, 3), {"groups": 3}),
    "batch split": ((40, 3, 12, 12), (6, 3, 5, 5), {}),
    "images beyond the scratch memory": ((11, 64, 60, 60), (8, 64, 3, 3), {"padding": 1}),
}


def inputs_of(x_shape, weight_shape, geometry, dtype, seed=0):
    """x, weight, bias and grad_y."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.empty(size, device="meta") for size in (x_shape, weight_shape))
    sizes = [x_shape, weight_shape, weight_shape[:1], F.conv2d(x, weight, **geometry).shape]
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def dense_results(inputs, mask, geometry, use_bias=True):
    x, weight, bias, grad_y = inputs
    leaves = [leaf.detach().requires_grad_() for leaf in (x, weight.masked_fill(~mask, 0), bias)]
    y = F.conv2d(*leaves[: 2 + use_bias], **geometry)
    grad_x, grad_weight, *grad_bias = torch.autograd.grad(y, leaves[: 2 + use_bias], grad_y)
    return [y.detach(), grad_x, grad_weight.masked_fill(~mask, 0), *grad_bias]


def sparse_results(inputs, pattern, geometry, storage="compact", use_bias=True):
    """The same four tensors; the gradient of values as a dense tensor."""
    x, weight, bias, grad_y = inputs
    values = pattern.pack(weight)
    if storage == "masked":
        values = weight.masked_fill(~pattern.to_mask(), torch.nan)
    leaves = [leaf.detach().requires_grad_() for leaf in (x, values, bias)]
    y = conv2d(*leaves[:2], pattern, leaves[2] if use_bias else None, **geometry)
    grad_x, grad_values, *grad_bias = torch.autograd.grad(y, leaves[: 2 + use_bias], grad_y)
    assert grad_values.shape == values.shape
    grad_weight = pattern.unpack(grad_values) if storage == "compact" else grad_values
    return [y.detach(), grad_x, grad_weight, *grad_bias]


@pytest.fixture
def check(make_mask, assert_accurate):
    def run(case, tile_size, kind, dtype, **how):
        x_shape, weight_shape, geometry = case
        mask = make_mask(kind, weight_shape, tile_size)
        pattern = Pattern.from_mask(mask, tile_size=tile_size)
        inputs = inputs_of(x_shape, weight_shape, geometry, dtype)
        got = sparse_results(inputs, pattern, geometry, **how)
        use_bias = how.get("use_bias", True)
        names = RESULTS[: 3 + use_bias]
        assert_accurate(got, inputs, lambda t: dense_results(t, mask, geometry, use_bias), names)

    return run


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_geometry(check, case, dtype):
    check(case, 8, "half", dtype)


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
def test_large(check, case, dtype):
    check(case, 64, "tenth", dtype)


def test_many_values(check, dtype):
    check(((3, 140, 5, 4), (1000, 140, 1, 1), {}), 64, "half", dtype)


def random_case(draw):
    """Shapes and geometry of any valid convolution of a modest size."""
    groups = draw.choice([1, 1, 2, 3])
    outputs, channels = groups * draw.randint(1, 12), draw.randint(1, 20)
    kernel = [draw.choice([1, 1, 2, 3, 3, 5]) for _ in "hw"]
    stride = [draw.choice([1, 1, 1, 2, 3]) for _ in "hw"]
    padding = [draw.choice([0, 0, 1, 2, 3]) for _ in "hw"]
    dilation = [draw.choice([1, 1, 2, 3]) for _ in "hw"]
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation)]
    # A single row or column is where planes and windows come out empty.
    height, width = (draw.choice([low, draw.randint(low, low + 16)]) for low in least)
    geometry = {"groups": groups, "stride": stride, "padding": padding, "dilation": dilation}
    return (draw.randint(1, 4), groups * channels, height, width), (outputs, channels, *kernel), geometry


@pytest.mark.parametrize("seed", range(8), ids="seed_{}".format)
def test_random_geometries(check, seed, dtype):
    draw = random.Random(seed)
    for _ in range(8):
        check(random_case(draw), draw.choice([8, 16, 32, 64]), draw.choice(["all", "half", "tenth"]), dtype)


@pytest.mark.parametrize("tile_size", [8, 16, 32, 64], ids="tile_{}".format)
@pytest.mark.parametrize("kind", ["all", "none", "one element", "tenth", "empty rows", "empty tiles"])
def test_every_mask_and_tile_size(check, kind, tile_size, dtype):
    geometry = {"groups": 2, "stride": (1, 2), "padding": 1}
    check(((2, 10, 6, 7), (36, 5, 3, 3), geometry), tile_size, kind, dtype)


@pytest.mark.parametrize(
    "how",
    [{"storage": "masked"}, {"use_bias": False}, {"storage": "masked", "use_bias": False}],
    ids=["masked", "no bias", "masked, no bias"],
)
def test_storage_and_bias(check, how, dtype):
    """Masked storage holds NaN at its inactive positions: they are never read, and get a gradient of 0."""
    check(CASES["groups 3, stride 2, dilation 2"], 8, "half", dtype, **how)


LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced with an offset": lambda t: F.pad(t, (1, 2, 3, 1, 1, 1))[:, 1:-1, 3:-1, 1:-2],
    "batch last": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every second image": lambda t: t.repeat_interleave(2, 0)[::2],
}


@pytest.fixture
def problem(dtype):
    geometry = {"groups": 2, "stride": (1, 2), "padding": 1}
    inputs = inputs_of((3, 10, 6, 7), (36, 5, 3, 3), geometry, dtype)
    pattern = Pattern.from_mask(torch.rand(36, 5, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.4)
    return inputs, pattern, pattern.pack(inputs[1]), geometry


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_strides_give_the_bits_of_a_contiguous_input(problem, layout):
    (x, _, bias, grad_y), pattern, values, geometry = problem
    assert torch.equal(layout(x), x)
    y = conv2d(x, values, pattern, bias, **geometry)
    again = conv2d(layout(x), values, pattern, bias, **geometry)
    assert torch.equal(again, y)
    assert again.is_contiguous()
    grad_x = conv2d_grad_input(grad_y, values, pattern, x.shape, **geometry)
    assert torch.equal(conv2d_grad_input(layout(grad_y), values, pattern, x.shape, **geometry), grad_x)
    grad_values = conv2d_grad_values(grad_y, x, pattern, **geometry)
    assert torch.equal(conv2d_grad_values(layout(grad_y), layout(x), pattern, **geometry), grad_values)


def test_expanded_inputs(problem):
    """Stride 0: an image or a scalar that stands for the whole batch, as the gradient of a sum is."""
    (x, _, bias, grad_y), pattern, values, geometry = problem
    for wide in (x[:1].expand(4, -1, -1, -1), x[:, :1, :1, :1].expand(-1, 10, 6, 7)):
        y = conv2d(wide.contiguous(), values, pattern, bias, **geometry)
        assert torch.equal(conv2d(wide, values, pattern, bias, **geometry), y)
    wide = torch.ones((), dtype=x.dtype).expand(grad_y.shape)
    grad_x = conv2d_grad_input(wide.contiguous(), values, pattern, x.shape, **geometry)
    assert torch.equal(conv2d_grad_input(wide, values, pattern, x.shape, **geometry), grad_x)
    grad_values = conv2d_grad_values(wide.contiguous(), x, pattern, **geometry)
    assert torch.equal(conv2d_grad_values(wide, x, pattern, **geometry), grad_values)


def test_values_and_bias_of_any_stride(problem):
    (x, weight, bias, _), pattern, values, geometry = problem
    y = conv2d(x, values, pattern, bias, **geometry)
    strided = values.repeat_interleave(2)[::2], bias.repeat_interleave(3)[::3]
    assert torch.equal(conv2d(x, strided[0], pattern, strided[1], **geometry), y)
    channels_last = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv2d(x, channels_last, pattern, bias, **geometry), y)


def test_lazily_negated_input(problem):
    """A view that holds the opposite sign until it is read."""
    (x, _, bias, grad_y), pattern, values, geometry = problem
    negated = torch._neg_view(x)
    assert negated.is_neg()
    y = conv2d(negated.resolve_neg(), values, pattern, bias, **geometry)
    assert torch.equal(conv2d(negated, values, pattern, bias, **geometry), y)


@pytest.mark.parametrize("name", ["3x3", "unequal strides", "dilation 2", "groups 2", "depthwise"])
def test_gradients_are_those_of_torch_nn_grad(name):
    x_shape, weight_shape, geometry = CASES[name]
    x, weight, _, grad_y = inputs_of(x_shape, weight_shape, geometry, torch.float64)
    pattern = Pattern.from_mask(torch.rand(weight_shape, generator=torch.Generator().manual_seed(0)) < 0.4)
    masked = weight * pattern.to_mask()
    grad_x = conv2d_grad_input(grad_y, pattern.pack(weight), pattern, x_shape, **geometry)
    torch.testing.assert_close(grad_x, conv2d_input(x_shape, masked, grad_y, **geometry))
    grad_weight = conv2d_grad_values(grad_y, x, pattern, dense=True, **geometry)
    expected = conv2d_weight(x, weight_shape, grad_y, **geometry) * pattern.to_mask()
    torch.testing.assert_close(grad_weight, expected)
    assert torch.equal(pattern.pack(grad_weight), conv2d_grad_values(grad_y, x, pattern, **geometry))
