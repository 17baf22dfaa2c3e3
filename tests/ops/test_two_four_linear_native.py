"""The native products of 2:4 weights against dense PyTorch, on every instruction set, outputs poisoned."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsekern import cpp

pytestmark = pytest.mark.usefixtures("poisoned", "isa")

SHAPES = [(1, 4), (1, 100), (100, 4), (7, 12), (65, 60), (130, 200)]
LEADING = [(), (0,), (1,), (2,), (15,), (16,), (17,), (127,), (129,), (300,), (2, 3), (0, 4)]
RESULTS = ["y", "grad_x", "grad_values"]


def random_tensor(size, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def inputs_of(shape, leading, dtype):
    """x, weight, bias and grad_y."""
    rows, columns = shape
    sizes = [(*leading, columns), shape, (rows,), (*leading, rows)]
    return [random_tensor(size, dtype, seed) for seed, size in enumerate(sizes)]


def dense_results(inputs, mask, use_bias=True):
    x, weight, bias, grad_y = inputs
    weight = weight.masked_fill(~mask, 0)
    grad_weight = grad_y.reshape(-1, weight.shape[0]).t() @ x.reshape(-1, weight.shape[1])
    return [F.linear(x, weight, bias if use_bias else None), grad_y @ weight, gather(grad_weight, mask)]


def gather(dense, mask):
    return dense[mask].view(mask.shape[0], -1)


def products(inputs, values, metadata, use_bias=True):
    x, _, bias, grad_y = inputs
    return [
        cpp.two_four_linear(x, values, bias if use_bias else None, metadata),
        cpp.two_four_linear_grad_input(grad_y, values, metadata),
        cpp.two_four_linear_grad_values(grad_y, x, metadata),
    ]


@pytest.fixture
def check(assert_accurate, pack_two_four):
    def run(shape, leading, dtype, **how):
        inputs = inputs_of(shape, leading, dtype)
        values, metadata, mask = pack_two_four(inputs[1])
        got = products(inputs, values, metadata, **how)
        assert_accurate(got, inputs, lambda tensors: dense_results(tensors, mask, **how), RESULTS)

    return run


@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_batches(check, shape, leading, dtype):
    check(shape, leading, dtype)


@pytest.mark.parametrize("samples", range(1, 36))
def test_every_small_batch(check, samples, dtype):
    """Kernels of each number of samples, up to the first panels of more than one vector."""
    check((70, 132), (samples,), dtype)


@pytest.mark.parametrize("columns", range(4, 140, 4))
@pytest.mark.parametrize("samples", [1, 5, 40])
def test_every_number_of_columns(check, samples, columns):
    """Every rest that a row may end in."""
    check((5, columns), (samples,), torch.float32)


@pytest.mark.parametrize("rows", range(1, 36))
@pytest.mark.parametrize("samples", [1, 5, 40])
def test_every_number_of_rows(check, samples, rows):
    check((rows, 36), (samples,), torch.float32)


@pytest.mark.parametrize("samples", [1, 4, 8, 12, 40])
def test_wide_and_tall_weights(check, samples, dtype):
    """More columns than features are kept near, and more rows than are summed or transposed at a time."""
    check((3, 17_000), (samples,), dtype)
    check((2100, 12), (samples,), dtype)


def test_more_panels_than_share_a_transposition(check, dtype):
    check((70, 132), (1100,), dtype)


def test_without_bias(check, dtype):
    check((37, 100), (5,), dtype, use_bias=False)
    check((37, 100), (70,), dtype, use_bias=False)


@pytest.mark.parametrize("samples", [0, 1, 3, 40])
def test_empty_weights(samples, dtype):
    x, bias, grad_y = (random_tensor(size, dtype) for size in ((samples, 8), (6,), (samples, 6)))
    for rows, columns in ((0, 8), (6, 0), (0, 0)):
        values = torch.empty(rows, columns // 2, dtype=dtype)
        metadata = torch.empty(rows, (columns + 7) // 8, dtype=torch.uint8)
        y = cpp.two_four_linear(x[:, :columns], values, bias[:rows], metadata)
        grad_x = cpp.two_four_linear_grad_input(grad_y[:, :rows], values, metadata)
        grad_values = cpp.two_four_linear_grad_values(grad_y[:, :rows], x[:, :columns], metadata)
        assert torch.equal(y, bias[:rows].expand(samples, rows))
        assert torch.equal(grad_x, torch.zeros(samples, columns, dtype=dtype))
        assert grad_values.shape == values.shape


def strided(tensor, how):
    """The same numbers in another place."""
    columns = tensor.shape[1]
    return {
        "transposed": lambda: tensor.t().contiguous().t(),
        "part of wider rows": lambda: torch.cat([tensor, tensor, tensor], 1)[:, columns : 2 * columns],
        "every other column": lambda: tensor.repeat_interleave(2, 1)[:, ::2],
        "every third sample": lambda: tensor.repeat_interleave(3, 0)[::3],
        "lazily negated": lambda: torch._neg_view(-tensor),
    }[how]()


@pytest.mark.parametrize("samples", [1, 6, 14, 50])
@pytest.mark.parametrize(
    "how",
    ["transposed", "part of wider rows", "every other column", "every third sample", "lazily negated"],
)
def test_strides(pack_two_four, how, samples, dtype):
    x, weight, bias, grad_y = inputs_of((37, 100), (samples,), dtype)
    values, metadata, _ = pack_two_four(weight)
    expected = products([x, weight, bias, grad_y], values, metadata)
    got = products([strided(x, how), weight, bias, strided(grad_y, how)], values, metadata)
    assert all(map(torch.equal, got, expected))


def test_samples_that_share_memory(pack_two_four, dtype):
    x, weight, bias, grad_y = inputs_of((37, 100), (1,), dtype)
    values, metadata, _ = pack_two_four(weight)
    shared = [x.expand(20, -1), weight, bias, grad_y.expand(20, -1)]
    expected = products([tensor.contiguous() for tensor in shared], values, metadata)
    assert all(map(torch.equal, products(shared, values, metadata), expected))


def test_strided_values_metadata_and_bias(pack_two_four, dtype):
    x, weight, bias, grad_y = inputs_of((37, 100), (6,), dtype)
    values, metadata, _ = pack_two_four(weight)
    expected = products([x, weight, bias, grad_y], values, metadata)
    elsewhere = [strided(values, "transposed"), strided(metadata, "every other column")]
    got = products([x, weight, strided(bias[:, None], "every other column")[:, 0], grad_y], *elsewhere)
    assert all(map(torch.equal, got, expected))


# Weight and batch: what is split between threads differs.
CUTS = {
    "one sample": ((700, 1000), 1),
    "a few samples": ((700, 1000), 7),
    "two groups of few samples": ((700, 1000), 13),
    "one panel": ((700, 1000), 100),
    "panels": ((600, 200), 1500),
    "panels of few rows": ((8, 40), 6000),
    "columns": ((30, 6000), 300),
}


@pytest.mark.parametrize(("shape", "samples"), CUTS.values(), ids=CUTS.keys())
def test_same_bits_for_any_number_of_threads(pack_two_four, shape, samples, dtype, threads):
    inputs = inputs_of(shape, (samples,), dtype)
    values, metadata, _ = pack_two_four(inputs[1])
    threads(1)
    expected = products(inputs, values, metadata)
    for count in (2, 3, 5):
        threads(count)
        for got, one, name in zip(products(inputs, values, metadata), expected, RESULTS):
            assert torch.equal(got, one), f"{name} with {count} threads"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("samples", [1, 5, 12, 50])
def test_nonfinite_inputs_reach_what_reads_them(pack_two_four, samples, dtype, bad):
    x, weight, bias, grad_y = inputs_of((37, 52), (samples,), dtype)
    values, metadata, mask = pack_two_four(weight)
    clean = products([x, weight, bias, grad_y], values, metadata)
    spoiled_x, spoiled_y = (torch.zeros_like(tensor, dtype=torch.bool) for tensor in (x, grad_y))
    spoiled_x[samples // 2, [3, 20]] = True
    spoiled_y[samples // 2, [4, 36]] = True
    bad_x, bad_y = x.masked_fill(spoiled_x, bad), grad_y.masked_fill(spoiled_y, bad)
    y, _, by_x = products([bad_x, weight, bias, grad_y], values, metadata)
    _, grad_x, by_y = products([x, weight, bias, bad_y], values, metadata)
    reached = [
        spoiled_x.double() @ mask.double().t() > 0,
        spoiled_y.double() @ mask.double() > 0,
        gather(spoiled_x.any(0).expand(37, -1), mask),
        gather(spoiled_y.any(0)[:, None].expand(-1, 52), mask),
    ]
    for got, right, positions in zip((y, grad_x, by_x, by_y), [*clean, clean[2]], reached, strict=True):
        assert positions.any()
        assert not positions.all()
        assert torch.equal(~torch.isfinite(got), positions)
        assert torch.equal(got[~positions], right[~positions])


@pytest.mark.parametrize("samples", [1, 9, 50])
def test_a_nonfinite_value_spoils_its_row_and_column(pack_two_four, samples, dtype):
    inputs = inputs_of((37, 52), (samples,), dtype)
    values, metadata, mask = pack_two_four(inputs[1])
    values[11, 5] = torch.inf
    y, grad_x, _ = products(inputs, values, metadata)
    column = mask[11].nonzero()[5].item()
    assert torch.isfinite(y).all(0).logical_not().nonzero().tolist() == [[11]]
    assert torch.isfinite(grad_x).all(0).logical_not().nonzero().tolist() == [[column]]
