"""2:4 weights in Triton, interpreted: products against dense PyTorch in float64, moved values bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton is not installed")

from sparsekern import triton

PAIRS = list(itertools.combinations(range(4), 2))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# samples, rows, columns: a few samples (which have blocks of their own), and many; odd numbers of groups.
SIZES = [(1, 1, 4), (5, 70, 132), (70, 65, 128), (33, 3, 260), (100, 20, 36), (64, 129, 64), (17, 128, 8)]


def names(dtypes):
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


class Weight:
    """Random values and metadata, and the dense weight that they stand for."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        kept = torch.tensor(PAIRS)[torch.randint(6, (rows, columns // 4), generator=generator)]
        nibbles = F.pad(kept[..., 0] | kept[..., 1] << 2, (0, columns // 4 % 2))
        self.metadata = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8)
        self.places = (kept + 4 * torch.arange(columns // 4)[:, None]).flatten(1)
        self.values = torch.randn(rows, columns // 2, generator=generator).to(dtype)
        self.dense = torch.zeros(rows, columns, dtype=dtype).scatter_(1, self.places, self.values)

    def gather(self, dense: torch.Tensor) -> torch.Tensor:
        return dense.gather(1, self.places)


class Problem(Weight):
    """A linear layer with random tensors, and what dense PyTorch makes of it in some dtype."""

    def __init__(self, samples: int, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(rows, columns, dtype)
        generator = torch.Generator().manual_seed(1)
        self.x, self.grad_y, self.bias = (
            torch.randn(shape, generator=generator).to(dtype)
            for shape in ((samples, columns), (samples, rows), (rows,))
        )

    def expected(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        x, grad_y, bias, dense = (t.to(dtype) for t in (self.x, self.grad_y, self.bias, self.dense))
        return {
            "two_four_linear": F.linear(x, dense, bias),
            "two_four_linear_grad_input": grad_y @ dense,
            "two_four_linear_grad_values": self.gather(grad_y.T @ x),
        }

    def found(self, interpreter) -> dict[str, torch.Tensor]:
        calls = {
            triton.two_four_linear: (self.x, self.values, self.bias, self.metadata),
            triton.two_four_linear_grad_input: (self.grad_y, self.values, self.metadata),
            triton.two_four_linear_grad_values: (self.grad_y, self.x, self.metadata),
        }
        futures = {op.__name__: interpreter.submit(op, *arguments) for op, arguments in calls.items()}
        return {name: future.result() for name, future in futures.items()}

    def check(self, interpreter) -> None:
        """No result is farther from float64 than twice the dense op of the same dtype, or rounding."""
        exact, dense = self.expected(torch.float64), self.expected(self.x.dtype)
        for name, result in self.found(interpreter).items():
            assert result.dtype == self.x.dtype
            assert result.shape == exact[name].shape
            if result.numel() == 0:
                continue
            rounding = torch.finfo(self.x.dtype).eps * exact[name].abs().max()
            allowed = 2 * (dense[name].double() - exact[name]).abs().max()
            assert (result.double() - exact[name]).abs().max() <= allowed + rounding, name


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(interpreter, size):
    Problem(*size).check(interpreter)


@pytest.mark.parametrize("samples", [3, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(interpreter, dtype, samples):
    Problem(samples, 68, 196, DTYPES[dtype]).check(interpreter)


def test_no_samples(interpreter):
    Problem(0, 40, 52).check(interpreter)


def test_leading_dimensions_and_strides(interpreter):
    weight = Weight(40, 52, torch.float32)
    x, grad_y = torch.randn(52, 12).T.view(3, 4, 52), torch.randn(40, 12).T.view(3, 4, 40)
    values, metadata = weight.values, weight.metadata
    # As much memory again between the rows of values and metadata.
    values = torch.cat([values, values], 1)[:, : values.shape[1]]
    metadata = torch.cat([metadata, metadata], 1)[:, : metadata.shape[1]]
    exact, grad_exact = weight.dense.double(), grad_y.reshape(-1, 40).double().T @ x.reshape(-1, 52).double()
    calls = [
        ((triton.two_four_linear, x, values, None, metadata), F.linear(x.double(), exact)),
        ((triton.two_four_linear_grad_input, grad_y, values, metadata), grad_y.double() @ exact),
        ((triton.two_four_linear_grad_values, grad_y, x, metadata), weight.gather(grad_exact)),
    ]
    for call, right in calls:
        found = interpreter.submit(*call).result()
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)


@names(DTYPES.values())
def test_values_between_the_multiples_of_a_pair(interpreter, dtype):
    """Pairs are loaded as one word, of which the address is not always a multiple."""
    weight = Weight(8, 16, dtype)
    shifted = torch.cat([torch.zeros(1, dtype=dtype), weight.values.flatten()])[1:].view(weight.values.shape)
    x = torch.ones(2, 16, dtype=dtype)
    found = interpreter.submit(triton.two_four_linear, x, shifted, None, weight.metadata).result()
    torch.testing.assert_close(found.double(), x.double() @ weight.dense.double().T, rtol=2e-2, atol=2e-2)


def test_a_gradient_meets_only_its_own_input(interpreter):
    metadata = torch.full((5, 1), 0x44, dtype=torch.uint8)
    x, grad_y = torch.ones(3, 8), torch.ones(3, 5)
    # Columns 0, 1, 4 and 5 are kept.
    x[1, 2], x[2, 5] = float("nan"), float("nan")
    grad = interpreter.submit(triton.two_four_linear_grad_values, grad_y, x, metadata).result()
    assert grad.isnan().nonzero()[:, 1].unique().tolist() == [3]


def test_the_same_bits_every_time(interpreter):
    """Sums that are cut into parts are added in order."""
    problem = Problem(4, 64, 1024)
    first, second = problem.found(interpreter), problem.found(interpreter)
    assert all(torch.equal(first[name], second[name]) for name in first)


ALL = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.float8_e4m3fn]


@names(ALL)
@pytest.mark.parametrize("shape", [(1, 4), (7, 12), (65, 132), (30, 256)], ids=str)
def test_gather_and_unpack_move_bits(interpreter, shape, dtype):
    weight = Weight(*shape, torch.float32)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    integers = torch.randint(-(2**62), 2**62, shape, generator=torch.Generator().manual_seed(0))
    dense = integers.to(bits)
    values = interpreter.submit(triton.gather_two_four, dense.view(dtype), weight.metadata).result()
    assert values.dtype == dtype
    assert torch.equal(values.view(bits), weight.gather(dense))
    unpacked = interpreter.submit(triton.unpack_two_four, values, weight.metadata).result()
    right = torch.zeros(shape, dtype=bits).scatter_(1, weight.places, values.view(bits))
    assert torch.equal(unpacked.view(bits), right)


def test_strided_matrices_are_moved_too(interpreter):
    weight = Weight(40, 52, torch.float32)
    dense = torch.randn(52, 40).T
    values = interpreter.submit(triton.gather_two_four, dense, weight.metadata).result()
    assert torch.equal(values, weight.gather(dense))
    wide = torch.cat([values, values], 1)[:, : values.shape[1]]
    unpacked = interpreter.submit(triton.unpack_two_four, wide, weight.metadata).result()
    assert torch.equal(unpacked, torch.zeros(40, 52).scatter_(1, weight.places, values))
