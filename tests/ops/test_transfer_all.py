"""transfer_all: what transfer gives for each vector, at once."""

from __future__ import annotations

import re

import pytest
import torch

from sparsekern.formats import Pattern
from sparsekern.ops import transfer, transfer_all

pytestmark = pytest.mark.usefixtures("poisoned")

MASKS = ["all", "none", "one element", "tenth", "half", "empty rows", "empty tiles"]
DTYPES = [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def vectors_of(nnz):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(nnz, generator=generator).to(dtype) for dtype in DTYPES]


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("complete", [False, True], ids=["stored where active", "complete grid"])
@pytest.mark.parametrize("tile_size", [8, 16, 32, 64], ids="tile_{}".format)
@pytest.mark.parametrize("before", MASKS)
@pytest.mark.parametrize("after", MASKS)
@pytest.mark.parametrize("shape", [(65, 130), (12, 5, 3, 2)], ids=str)
def test_each_vector_moves_as_alone(make_mask, shape, before, after, tile_size, complete):
    source = Pattern.from_mask(make_mask(before, shape, tile_size), tile_size=tile_size)
    mask = make_mask(after, shape, tile_size, seed=1)
    target = Pattern.from_mask(mask, tile_size=tile_size, complete=complete)
    for one, other in ((source, target), (target, source)):
        vectors = vectors_of(one.nnz)
        moved = transfer_all(vectors, one, other)
        assert len(moved) == len(vectors)
        for vector, got in zip(vectors, moved):
            assert same_bits(got, transfer(vector, one, other, backend="reference"))


def test_nine_vectors_one_and_none():
    source, target = (
        Pattern.random((70, 90), 0.7, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    )
    vectors = [torch.randn(source.nnz) for _ in range(9)]
    right = [transfer(vector, source, target) for vector in vectors]
    assert all(map(same_bits, transfer_all(vectors, source, target), right))
    assert same_bits(*transfer_all(vectors[:1], source, target), right[0])
    assert transfer_all([], source, target) == []


def test_results_are_new_memory_without_gradients():
    pattern = Pattern.from_mask(torch.ones(8, 8, dtype=torch.bool))
    values = torch.randn(64, requires_grad=True)
    (moved,) = transfer_all([values], pattern, pattern)
    assert not moved.requires_grad
    assert torch.equal(moved, values)
    kept = values.detach().clone()
    moved.zero_()
    assert torch.equal(values, kept)


def test_strided_and_negated_vectors():
    source, target = (
        Pattern.random((20, 30), 0.5, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    )
    values = torch.randn(source.nnz)
    right = transfer(values, source, target)
    odd = [values.repeat_interleave(2)[1::2], torch._neg_view(-values)]
    assert all(same_bits(moved, right) for moved in transfer_all(odd, source, target))


SOURCE, TARGET = (Pattern.random((6, 9), 0.5, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
BAD = {
    "one tensor": ((torch.ones(27), SOURCE, TARGET), TypeError, "vectors must be a list with an entry"),
    "no pattern": (([], SOURCE, TARGET.data), TypeError, "target must be a sparsekern.Pattern, got Tensor"),
    "another shape": (
        ([], SOURCE, Pattern.random((9, 6), 0.5)),
        ValueError,
        "target must have the source's shape (6, 9) and tile size 8, got (9, 6) and 8",
    ),
    "another tile size": (
        ([], SOURCE, Pattern.random((6, 9), 0.5, tile_size=16)),
        ValueError,
        "target must have the source's shape (6, 9) and tile size 8, got (6, 9) and 16",
    ),
    "another length": (
        ([torch.ones(27), torch.ones(5)], SOURCE, TARGET),
        ValueError,
        "vectors[1] must have shape (27,), got (5,)",
    ),
    "integers": (
        ([torch.ones(27, dtype=torch.int32)], SOURCE, TARGET),
        TypeError,
        "vectors[0] must have a floating-point dtype, got torch.int32",
    ),
    "another device": (
        ([torch.ones(27, device="meta")], SOURCE, TARGET),
        ValueError,
        "vectors[0] must be on the pattern's device cpu, got meta",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_arguments(arguments, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        transfer_all(*arguments)


def test_opcheck():
    arguments = (vectors_of(SOURCE.nnz)[1:], SOURCE.data, TARGET.data, TARGET.nnz, "")
    torch.library.opcheck(torch.ops.sparsekern.transfer_all.default, arguments)
