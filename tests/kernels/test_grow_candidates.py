"""grow_candidates in Triton, interpreted: exactly what the dense gradient gives, ties and all."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import sparsekern as sk
from sparsekern import candidates

# samples, rows, columns, tile size
SIZES = [(1, 1, 1, 8), (5, 70, 130, 64), (70, 65, 127, 32), (33, 40, 50, 16), (100, 20, 30, 8)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def integers(*shape, dtype=torch.float32, seed=0):
    """Small, so that sums are exact in any order."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_surplus(surplus, *arguments):
    """In the interpreter's process: how much is written down too much decides which passes there are."""
    before, candidates.SURPLUS = candidates.SURPLUS, surplus
    try:
        return sk.ops.grow_candidates(*arguments, backend="triton")
    finally:
        candidates.SURPLUS = before


def check(interpreter, grad_y, x, pattern, surpluses=(65536, 30, 0)):
    inactive = pattern.numel - pattern.nnz
    for count in {0, min(1, inactive), inactive // 5, inactive}:
        expected = sk.ops.grow_candidates(grad_y, x, pattern, count, backend="reference")
        for surplus in surpluses:
            got = interpreter.submit(with_surplus, surplus, grad_y, x, pattern, count).result()
            for result, truth in zip(got, expected):
                assert result.dtype == truth.dtype
                torch.testing.assert_close(result, truth, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(map(str, size)))
def test_sizes(interpreter, size):
    samples, rows, columns, tile = size
    pattern = sk.Pattern.random((rows, columns), 0.8, tile_size=tile)
    check(interpreter, integers(samples, rows), integers(samples, columns, seed=1), pattern)


@pytest.mark.parametrize("tile_size", [8, 64])
def test_masks_of_every_kind(interpreter, mask_of, tile_size):
    pattern = sk.Pattern.from_mask(mask_of((70, 130)), tile_size=tile_size)
    check(interpreter, integers(20, 70), integers(20, 130, seed=1), pattern, surpluses=(30,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(interpreter, dtype):
    pattern = sk.Pattern.random((64, 100), 0.9)
    grad_y = integers(70, 64, dtype=DTYPES[dtype])
    check(interpreter, grad_y, integers(70, 100, dtype=DTYPES[dtype], seed=1), pattern)


def test_no_samples(interpreter):
    check(interpreter, torch.zeros(0, 40), torch.zeros(0, 50), sk.Pattern.random((40, 50), 0.9))


def test_leading_dimensions_and_strides(interpreter):
    grad_y, x = integers(1, 4, 40).expand(3, 4, 40), integers(50, 12).T.view(3, 4, 50)
    check(interpreter, grad_y, x, sk.Pattern.random((40, 50), 0.9))


def test_nan_is_largest_then_infinity(interpreter):
    grad_y, x = torch.ones(2, 40), torch.ones(2, 50)
    grad_y[0, 20], grad_y[0, 5] = -torch.inf, torch.nan
    check(interpreter, grad_y, x, sk.Pattern.random((40, 50), 0.9))
