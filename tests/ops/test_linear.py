"""linear and its gradients against dense PyTorch, on every instruction set, with poisoned outputs."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from sparsekern.formats import Pattern
from sparsekern.ops import linear, linear_grad_input, linear_grad_values

pytestmark = pytest.mark.usefixtures("poisoned", "isa")

SHAPES = [(1, 1), (1, 100), (100, 1), (7, 9), (65, 63), (130, 200)]
MASKS = ["all", "none", "one element", "tenth", "empty rows", "empty tiles"]
LEADING = [(), (0,), (1,), (2,), (15,), (16,), (17,), (127,), (129,), (300,), (2, 3), (0, 4)]
RESULTS = ["y", "grad_x", "grad_values", "grad_bias"]


def inputs_of(shape, leading, dtype, seed=0):
    """x, weight, bias and grad_y."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    sizes = [(*leading, columns), (rows, columns), (rows,), (*leading, rows)]
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def dense_results(inputs, mask, use_bias=True):
    x, weight, bias, grad_y = inputs
    leaves = [leaf.detach().requires_grad_() for leaf in (x, weight.masked_fill(~mask, 0), bias)]
    y = F.linear(*leaves[: 2 + use_bias])
    grad_x, grad_weight, *grad_bias = torch.autograd.grad(y, leaves[: 2 + use_bias], grad_y)
    return [y.detach(), grad_x, grad_weight.masked_fill(~mask, 0), *grad_bias]


def sparse_results(inputs, pattern, storage="compact", use_bias=True):
    """The same four tensors; the gradient of values as a dense tensor."""
    x, weight, bias, grad_y = inputs
    values = pattern.pack(weight)
    if storage == "masked":
        values = weight.masked_fill(~pattern.to_mask(), torch.nan)
    leaves = [leaf.detach().requires_grad_() for leaf in (x, values, bias)]
    y = linear(*leaves[:2], pattern, leaves[2] if use_bias else None)
    grad_x, grad_values, *grad_bias = torch.autograd.grad(y, leaves[: 2 + use_bias], grad_y)
    assert grad_values.shape == values.shape
    grad_weight = pattern.unpack(grad_values) if storage == "compact" else grad_values
    return [y.detach(), grad_x, grad_weight, *grad_bias]


@pytest.fixture
def check(make_mask, assert_accurate):
    def run(shape, tile_size, kind, leading, dtype, **how):
        mask = make_mask(kind, shape, tile_size)
        pattern = Pattern.from_mask(mask, tile_size=tile_size)
        inputs = inputs_of(shape, leading, dtype)
        got = sparse_results(inputs, pattern, **how)
        use_bias = how.get("use_bias", True)
        assert_accurate(got, inputs, lambda t: dense_results(t, mask, use_bias), RESULTS[: 3 + use_bias])

    return run


@pytest.mark.parametrize("samples", range(1, 34))
def test_every_small_batch(check, samples, dtype):
    """Panels of each narrow width, full and not, up to the first that is as wide as for large batches."""
    check((70, 133), 64, "tenth", (samples,), dtype)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("samples", [1, 3, 8])
@pytest.mark.parametrize("tile_size", [8, 64], ids="tile_{}".format)
def test_small_batch_on_every_kind_of_mask(check, tile_size, samples, kind, dtype):
    check((130, 200), tile_size, kind, (samples,), dtype)


@pytest.mark.parametrize("samples", [1, 2, 7, 20])
def test_small_batch_on_wide_and_on_tall_weights(check, samples, dtype):
    """More columns than one list of positions takes, and more rows than one tile."""
    check((3, 9000), 8, "tenth", (samples,), dtype)
    check((9000, 3), 8, "tenth", (samples,), dtype)
    check((66, 5000), 64, "tenth", (samples,), dtype)


@pytest.mark.parametrize("samples", [1, 4, 11])
def test_small_batch_with_strides(make_mask, assert_accurate, samples, dtype):
    shape = (70, 133)
    mask = make_mask("tenth", shape, 64)
    pattern = Pattern.from_mask(mask, tile_size=64)
    x, weight, bias, grad_y = inputs_of(shape, (samples,), dtype)
    strided = [
        torch.cat([x, x], 1)[:, shape[1] :],
        weight,
        bias,
        grad_y.repeat_interleave(2, 1)[:, ::2],
    ]
    transposed = [x.t().contiguous().t(), weight, bias, grad_y.t().contiguous().t()]
    for inputs in (strided, transposed):
        got = sparse_results(inputs, pattern)
        assert_accurate(got, inputs, lambda t: dense_results(t, mask), RESULTS)


@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("tile_size", [8, 16, 32, 64], ids="tile_{}".format)
def test_every_batch_and_tile_size(check, tile_size, leading, dtype):
    check((70, 133), tile_size, "half", leading, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("batch", [1, 19], ids="batch_{}".format)
def test_every_mask(check, kind, shape, batch, dtype):
    check(shape, 8, kind, (batch,), dtype)


@pytest.mark.parametrize("leading", [(), (1,), (33,)], ids=str)
@pytest.mark.parametrize(
    "how",
    [{"storage": "masked"}, {"use_bias": False}, {"storage": "masked", "use_bias": False}],
    ids=["masked", "no bias", "masked, no bias"],
)
def test_storage_and_bias(check, how, leading, dtype):
    """Masked storage holds NaN at its inactive positions: they are never read, and get a gradient of 0."""
    check((45, 70), 16, "tenth", leading, dtype, **how)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((10, 40), 2500), ((70, 1500), 1700), ((2100, 90), 40)],
    ids=["few rows of tiles, batch split", "batch beyond the scratch memory", "many rows of tiles"],
)
def test_large(check, shape, batch, dtype):
    check(shape, 64, "hundredth", (batch,), dtype)


@pytest.mark.parametrize("seed", range(4), ids="seed_{}".format)
def test_random_shapes(check, seed, dtype):
    draw = random.Random(seed)
    for _ in range(8):
        shape = draw.randint(1, 150), draw.randint(1, 150)
        kind = draw.choice(["all", "half", "tenth", "empty tiles"])
        check(shape, draw.choice([8, 16, 32, 64]), kind, (draw.randint(1, 140),), dtype)


@pytest.mark.parametrize("shape", [(20, 8192), (8192, 20)], ids=["rows", "columns"])
def test_long_sums(check, shape, dtype):
    """One running sum of thousands of terms loses digits that the dense op's blocks keep."""
    check(shape, 64, "half", (16,), dtype)


LAYOUTS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "sliced with an offset": lambda t: F.pad(t, (3, 2, 1, 1))[1:-1, 3:-2],
    "every second column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "every second row": lambda t: t.repeat_interleave(2, 0)[1::2],
    "columns far apart": lambda t: t.t().contiguous().repeat_interleave(3, 0)[::3].t(),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("batch", [1, 5, 37], ids="batch_{}".format)
def test_any_strides_give_the_bits_of_a_contiguous_input(layout, batch, dtype):
    pattern = Pattern.from_mask(torch.rand(50, 70, generator=torch.Generator().manual_seed(0)) < 0.4)
    x, weight, bias, grad_y = inputs_of((50, 70), (batch,), dtype)
    values = pattern.pack(weight)
    assert torch.equal(layout(x), x)
    assert torch.equal(linear(layout(x), values, pattern, bias), linear(x, values, pattern, bias))
    grad_x = linear_grad_input(grad_y, values, pattern)
    assert torch.equal(linear_grad_input(layout(grad_y), values, pattern), grad_x)
    grad_values = linear_grad_values(grad_y, x, pattern)
    assert torch.equal(linear_grad_values(layout(grad_y), x, pattern), grad_values)
    assert torch.equal(linear_grad_values(grad_y, layout(x), pattern), grad_values)


@pytest.mark.parametrize("batch", [1, 21], ids="batch_{}".format)
def test_expanded_inputs(batch, dtype):
    """Stride 0: a row or a scalar that stands for the whole batch, as the gradient of a sum is."""
    pattern = Pattern.from_mask(torch.rand(50, 70, generator=torch.Generator().manual_seed(0)) < 0.4)
    x, weight, _, grad_y = inputs_of((50, 70), (1,), dtype)
    values = pattern.pack(weight)
    for row in (x, x[:, :1].expand(1, 70)):
        wide = row.expand(batch, 70)
        assert torch.equal(linear(wide, values, pattern), linear(wide.contiguous(), values, pattern))
    for row in (grad_y, torch.ones((), dtype=dtype).expand(1, 50)):
        wide = row.expand(batch, 50)
        packed = wide.contiguous()
        grad_x = linear_grad_input(packed, values, pattern)
        assert torch.equal(linear_grad_input(wide, values, pattern), grad_x)
        features = x.expand(batch, 70).contiguous()
        expected = linear_grad_values(packed, features, pattern)
        assert torch.equal(linear_grad_values(wide, features, pattern), expected)


def test_strided_vectors_and_more_dimensions(dtype):
    pattern = Pattern.from_mask(torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.4)
    x, weight, bias, _ = inputs_of((20, 30), (4, 5, 6), dtype)
    values = pattern.pack(weight)
    y = linear(x, values, pattern, bias)
    assert y.shape == (4, 5, 6, 20)
    assert torch.equal(y.flatten(0, 2), linear(x.flatten(0, 2), values, pattern, bias))
    swapped = linear(x.transpose(0, 2), values, pattern, bias)
    assert torch.equal(swapped, y.transpose(0, 2))
    assert swapped.is_contiguous()
    vector = x[0, 0].t().contiguous().t()[3]
    assert vector.stride() == (6,)
    y = linear(vector.contiguous(), values, pattern, bias)
    assert torch.equal(linear(vector, values, pattern, bias), y)


def test_values_and_bias_of_any_stride(dtype):
    pattern = Pattern.from_mask(torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.4)
    x, weight, bias, _ = inputs_of((20, 30), (9,), dtype)
    values = pattern.pack(weight)
    y = linear(x, values, pattern, bias)
    strided = values.repeat_interleave(2)[::2], bias.repeat_interleave(3)[::3]
    assert torch.equal(linear(x, strided[0], pattern, strided[1]), y)
    assert torch.equal(linear(x, weight.t().contiguous().t(), pattern, bias), y)
    same = linear(x, values[:1].expand(pattern.nnz), pattern, bias[:1].expand(20))
    assert torch.equal(same, linear(x, values[:1].repeat(pattern.nnz), pattern, bias[:1].repeat(20)))


def test_lazily_negated_input():
    """The imaginary part of a conjugate is a view that holds the opposite sign until it is read."""
    pattern = Pattern.from_mask(torch.ones(4, 30, dtype=torch.bool))
    values = torch.ones(pattern.nnz)
    x = torch.randn(3, 30, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).conj().imag
    assert x.is_neg()
    assert torch.equal(linear(x, values, pattern), linear(x.resolve_neg(), values, pattern))


def test_gradients_as_public_functions_take_a_dense_gradient(dtype):
    pattern = Pattern.from_mask(torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.4)
    x, weight, _, grad_y = inputs_of((20, 30), (2, 5), dtype)
    compact = linear_grad_values(grad_y, x, pattern)
    assert torch.equal(linear_grad_values(grad_y, x, pattern, dense=True), pattern.unpack(compact))
    grad_x = linear_grad_input(grad_y, pattern.pack(weight), pattern)
    assert grad_x.shape == (2, 5, 30)
    assert torch.equal(linear_grad_input(grad_y, weight, pattern), grad_x)
