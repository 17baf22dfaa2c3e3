"""linear and its gradients in Triton, interpreted, against dense PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton is not installed")

import sparsekern as sk

# samples, rows, columns, tile size: odd sizes, a few samples (which have blocks of their own), and many.
SIZES = [
    (1, 1, 1, 8),
    (5, 70, 130, 64),
    (70, 65, 127, 32),
    (33, 40, 50, 16),
    (100, 20, 30, 8),
    (64, 129, 64, 64),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def size_id(size) -> str:
    samples, rows, columns, tile = size
    return f"{samples}x{columns}-to-{rows}-tile{tile}"


class Problem:
    """A linear layer with random tensors, and what dense PyTorch makes of it in some dtype."""

    def __init__(self, pattern: sk.Pattern, samples: int, dtype=torch.float32, storage="compact", seed=0):
        generator = torch.Generator().manual_seed(seed)
        rows, columns = pattern.shape

        def random(*shape):
            return torch.randn(shape, generator=generator).to(dtype)

        self.pattern = pattern
        self.x, self.grad_y, self.bias = random(samples, columns), random(samples, rows), random(rows)
        self.weight = random(pattern.nnz) if storage == "compact" else random(rows, columns)
        self.dense = pattern.unpack(self.weight if storage == "compact" else pattern.pack(self.weight))
        self.masked = storage == "masked"

    def expected(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        x, grad_y, bias, dense = (t.to(dtype) for t in (self.x, self.grad_y, self.bias, self.dense))
        grad = self.pattern.pack(grad_y.T @ x)
        return {
            "linear": F.linear(x, dense, bias),
            "linear_grad_input": grad_y @ dense,
            "linear_grad_values": self.pattern.unpack(grad) if self.masked else grad,
        }

    def found(self, interpreter) -> dict[str, torch.Tensor]:
        p, ops = self.pattern, sk.ops
        calls = {
            "linear": (ops.linear, self.x, self.weight, p, self.bias),
            "linear_grad_input": (ops.linear_grad_input, self.grad_y, self.weight, p),
            "linear_grad_values": (ops.linear_grad_values, self.grad_y, self.x, p),
        }
        futures = {}
        for name, (op, *arguments) in calls.items():
            options = {"dense": self.masked} if name == "linear_grad_values" else {}
            futures[name] = interpreter.submit(op, *arguments, backend="triton", **options)
        return {name: future.result() for name, future in futures.items()}

    def check(self, interpreter) -> None:
        """No result is farther from float64 than twice the dense op of the same dtype, or rounding."""
        exact, dense, found = (
            self.expected(torch.float64),
            self.expected(self.x.dtype),
            self.found(interpreter),
        )
        for name, result in found.items():
            assert result.dtype == self.x.dtype
            assert result.shape == exact[name].shape
            scale = exact[name].abs().max() if exact[name].numel() else torch.tensor(0.0)
            rounding = torch.finfo(self.x.dtype).eps * scale
            allowed = 2 * (dense[name].double() - exact[name]).abs().max() if exact[name].numel() else 0
            worst = (result.double() - exact[name]).abs().max() if result.numel() else torch.tensor(0.0)
            assert worst <= allowed + rounding, name


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_masks_of_every_kind(interpreter, mask_of, storage):
    pattern = sk.Pattern.from_mask(mask_of((70, 130)), tile_size=64 if storage == "compact" else 32)
    Problem(pattern, 5, storage=storage).check(interpreter)


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("size", SIZES, ids=size_id)
def test_sizes(interpreter, size, storage):
    samples, rows, columns, tile = size
    pattern = sk.Pattern.random((rows, columns), 0.8, tile_size=tile)
    Problem(pattern, samples, storage=storage).check(interpreter)


@pytest.mark.parametrize("samples", [3, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(interpreter, dtype, samples):
    pattern = sk.Pattern.random((64, 100), 0.9)
    Problem(pattern, samples, DTYPES[dtype]).check(interpreter)


@pytest.mark.parametrize("samples", [7, 66])
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("shape", [(128, 256), (120, 170)], ids=["even", "cut-off"])
def test_block_patterns(interpreter, shape, block_size, samples):
    generator = torch.Generator().manual_seed(0)
    pattern = sk.Pattern.random(shape, 0.6, block_size=block_size, generator=generator)
    storage = "masked" if block_size == 64 and samples == 7 else "compact"
    # A step is as long as a tile in bfloat16, and a quarter of it in float32: far fewer of them to interpret.
    dtype = torch.float32 if block_size == 128 else torch.bfloat16
    Problem(pattern, samples, dtype, storage).check(interpreter)


@pytest.mark.parametrize("shape", [(70, 128), (128, 70)], ids=["last-row-of-tiles", "last-column-of-tiles"])
def test_everything_active_and_one_side_cut_off(interpreter, shape):
    Problem(sk.Pattern.from_mask(torch.ones(shape, dtype=torch.bool), tile_size=64), 20).check(interpreter)


def test_no_samples(interpreter):
    Problem(sk.Pattern.random((40, 50), 0.9), 0).check(interpreter)


def test_leading_dimensions_and_strides(interpreter):
    problem = Problem(sk.Pattern.random((40, 50), 0.9), 12)
    x = torch.randn(50, 12).T.view(3, 4, 50)
    y = interpreter.submit(sk.ops.linear, x, problem.weight, problem.pattern, backend="triton").result()
    torch.testing.assert_close(y.double(), F.linear(x.double(), problem.dense.double()), rtol=1e-5, atol=1e-5)


def test_nan_next_to_the_block_stays_outside(interpreter):
    """Tiles of 8 are computed in blocks of 16: the features of the tile beside must not come in."""
    mask = torch.zeros(8, 24, dtype=torch.bool)
    mask[:, :8] = True
    pattern = sk.Pattern.from_mask(mask, tile_size=8)
    x = torch.full((3, 24), float("nan"))
    x[:, :8] = 1.0
    weight = torch.randn(pattern.nnz)
    y = interpreter.submit(sk.ops.linear, x, weight, pattern, backend="triton").result()
    torch.testing.assert_close(y, pattern.unpack(weight).sum(1).expand(3, 8))


def test_the_same_bits_every_time(interpreter):
    """Sums that are cut into parts are added in order."""
    problem = Problem(sk.Pattern.random((64, 1024), 0.9), 4)
    first, second = problem.found(interpreter), problem.found(interpreter)
    assert all(torch.equal(first[name], second[name]) for name in first)
