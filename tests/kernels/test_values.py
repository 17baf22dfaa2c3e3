"""pack and unpack in Triton, interpreted: exact, bit for bit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import sparsekern as sk

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
# With tiles of 64 and 32; then small ones, since a program for each tile takes long to interpret.
SHAPES = [(tile, shape) for tile in (64, 32) for shape in [(1, 1), (65, 127), (65, 20, 3, 2)]]
SHAPES += [(tile, shape) for tile in (16, 8) for shape in [(1, 1), (20, 3, 3, 3), (30, 40)]]


def call(interpreter, op, *arguments):
    return interpreter.submit(op, *arguments, backend="triton").result()


@pytest.mark.parametrize(("tile_size", "shape"), SHAPES, ids=str)
def test_masks_of_every_kind(interpreter, mask_of, tile_size, shape):
    pattern = sk.Pattern.from_mask(mask_of(shape), tile_size=tile_size)
    values, dense = torch.randn(pattern.nnz), torch.randn(shape)
    assert torch.equal(call(interpreter, sk.ops.unpack, values, pattern), pattern.unpack(values))
    assert torch.equal(call(interpreter, sk.ops.pack, dense, pattern), pattern.pack(dense))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_dtypes(interpreter, dtype):
    pattern = sk.Pattern.random((70, 90), 0.8)
    values, dense = torch.randn(pattern.nnz).to(dtype), torch.randn(70, 90).to(dtype)
    unpacked = call(interpreter, sk.ops.unpack, values, pattern)
    assert unpacked.dtype == dtype
    assert torch.equal(unpacked, pattern.unpack(values))
    assert torch.equal(call(interpreter, sk.ops.pack, dense, pattern), pattern.pack(dense))


def test_strided_tensors(interpreter):
    pattern = sk.Pattern.random((40, 50), 0.8)
    values, dense = torch.randn(pattern.nnz, 2)[:, 0], torch.randn(50, 40).T
    assert torch.equal(call(interpreter, sk.ops.unpack, values, pattern), pattern.unpack(values))
    assert torch.equal(call(interpreter, sk.ops.pack, dense, pattern), pattern.pack(dense))
