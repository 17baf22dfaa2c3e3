"""The native int8 product of 2:4 weights: the bits of its definition in PyTorch, on every instruction set."""

from __future__ import annotations

import pytest
import torch

from sparsekern import cpp, native

pytestmark = pytest.mark.usefixtures("poisoned", "isa")

SHAPES = [(1, 4), (1, 100), (100, 4), (7, 12), (65, 60), (130, 200)]
DTYPES = [torch.float32, torch.bfloat16]


def quantized(x, x_scale):
    """int64 and the scale of each row, as the contract has it."""
    x = x.float()
    if x_scale is None:
        scale = x.abs().amax(-1, keepdim=True) / 127
        scale = torch.where(scale == 0, 1.0, scale)
    else:
        scale = x_scale.expand(*x.shape[:-1], 1)
    return torch.round(x / scale).clamp(-127, 127).long(), scale


def definition(x, weight, bias, scale, x_scale):
    q, x_scales = quantized(x, x_scale)
    # Sums of int64 are exact, and torch multiplies matrices of them on a CPU.
    y = (q @ weight.long().t()).to(torch.int32).float() * (x_scales * scale)
    return (y if bias is None else y + bias.float()).to(x.dtype)


class Problem:
    def __init__(self, pack_two_four, shape, leading, dtype=torch.float32):
        rows, columns = shape
        generator = torch.Generator().manual_seed(0)
        weight = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int16)
        values, self.metadata, mask = pack_two_four(weight)
        self.values = values.to(torch.int8)
        self.weight = weight * mask
        self.x = torch.randn((*leading, columns), generator=generator).to(dtype)
        self.bias = torch.randn(rows, generator=generator).to(dtype)
        self.scale = torch.rand(rows, generator=generator)

    def product(self, x_scale=None, use_bias=True):
        bias = self.bias if use_bias else None
        return cpp.two_four_linear_int8(self.x, self.values, bias, self.metadata, self.scale, x_scale)

    def check(self, x_scale=None, use_bias=True):
        bias = self.bias if use_bias else None
        expected = definition(self.x, self.weight, bias, self.scale, x_scale)
        got = self.product(x_scale, use_bias)
        assert got.dtype == self.x.dtype
        assert torch.equal(got, expected)


@pytest.fixture
def problem(pack_two_four):
    return lambda *arguments: Problem(pack_two_four, *arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("leading", [(), (0,), (1,), (2,), (7,), (8,), (9,), (2, 3), (130,)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_batches(problem, shape, leading, dtype):
    given = problem(shape, leading, dtype)
    given.check()
    given.check(torch.tensor(0.02))
    given.check(use_bias=False)


@pytest.mark.parametrize("columns", range(4, 268, 4))
def test_every_number_of_columns(problem, columns):
    problem((5, columns), (3,)).check()


@pytest.mark.parametrize("samples", range(1, 26))
def test_every_number_of_rows_and_samples(problem, samples):
    for rows in range(1, 10):
        problem((rows, 136), (samples,)).check()


def test_half_is_rounded_to_even(problem):
    given = problem((3, 256), (1,))
    given.x = (torch.arange(256) - 128) / 2
    given.check(torch.tensor(1.0))
    given.x[-1] = 127.0
    given.check()


def test_beyond_the_scale_is_clamped(problem):
    given = problem((9, 64), (4,))
    given.x *= 1e30
    given.check(torch.tensor(0.5))
    given.x[0, :3] = torch.tensor([torch.inf, -torch.inf, 3.4e38])
    given.check(torch.tensor(0.5))


def test_zero_rows_and_the_smallest_numbers(problem):
    given = problem((9, 64), (4,))
    given.x[1] = 0
    given.x[2] *= 1e-42
    given.check()
    given.x.zero_()
    given.check()
    assert torch.equal(given.product(), given.bias.expand(4, -1))


def test_nan_spoils_its_sample(problem):
    for x_scale in (None, torch.tensor(0.02)):
        given = problem((9, 64), (4,))
        expected = given.product(x_scale)
        given.x[2, 17] = torch.nan
        got = given.product(x_scale)
        assert got[2].isnan().all()
        assert torch.equal(got[[0, 1, 3]], expected[[0, 1, 3]])


def test_infinity_spoils_its_sample_where_that_decides_the_scale(problem):
    given = problem((9, 64), (4,))
    expected = given.product()
    given.x[2, 17] = torch.inf
    got = given.product()
    assert not got[2].isfinite().any()
    assert torch.equal(got[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("samples", [1, 3, 9])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_exact(samples, sign):
    """As many columns as there may be, all products the largest: nothing saturates on the way."""
    columns = (2**31 // (127 * 128)) * 2
    values = torch.full((2, columns // 2), -128, dtype=torch.int8)
    metadata = torch.full((2, (columns + 7) // 8), 0b0100_0100, dtype=torch.uint8)
    if columns % 8:
        metadata[:, -1] = 0b0100
    x = torch.full((samples, columns), sign * 127.0)
    got = cpp.two_four_linear_int8(x, values, None, metadata, torch.ones(2), torch.tensor(1.0))
    assert torch.equal(got, torch.full((samples, 2), float(-sign * 127 * 128 * (columns // 2))))


def test_strides(problem):
    given = problem((37, 100), (20,))
    expected = given.product()
    x = given.x
    for elsewhere in (
        x.t().contiguous().t(),
        torch.cat([x, x], 1)[:, 100:],
        x.repeat_interleave(3, 1)[:, ::3],
        torch._neg_view(-x),
    ):
        given.x = elsewhere
        assert torch.equal(given.product(), expected)


@pytest.mark.parametrize("samples", [1, 7, 300])
def test_same_bits_for_any_number_of_threads(problem, samples, threads):
    given = problem((700, 1000), (samples,))
    threads(1)
    expected = given.product()
    for count in (2, 3, 5):
        threads(count)
        assert torch.equal(given.product(), expected), count


def test_same_bits_on_every_instruction_set(problem, isa):
    given = problem((70, 333 * 4), (21,))
    got = given.product()
    with native.isa("portable"):
        assert torch.equal(got, given.product()), isa
