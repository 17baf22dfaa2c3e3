"""The layouts that PyTorch's own 2:4 products read: made of that of rows, on CPU tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from sparsekern import two_four_layouts
from sparsekern.two_four_layouts import LAYOUTS, MULTIPLES, arrange, arrange_new_values, blocked
from tests.two_four_stand_ins import (
    DTYPES,
    HALVES,
    KINDS,
    Library,
    install,
    name,
    places_of,
    recorded,
    weight,
)


@pytest.fixture
def library(monkeypatch):
    return install(monkeypatch, Library())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_multiples_are_those_of_pytorch(layout, dtype):
    tensor = {
        "cutlass": SparseSemiStructuredTensorCUTLASS,
        "cusparselt": SparseSemiStructuredTensorCUSPARSELT,
    }
    least = tensor[layout]._DTYPE_SHAPE_CONSTRAINTS[dtype]
    assert MULTIPLES[layout, dtype] == (least.sparse_min_rows, least.sparse_min_cols, least.dense_min_rows)
    assert least.dense_min_rows == least.dense_min_cols


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", [(32, 128), (96, 256), (128, 640)], ids=str)
def test_metadata_in_the_order_of_cutlass(shape, dtype):
    values, metadata, dense = weight(*shape, dtype)
    found = arrange(values, metadata, "cutlass")
    right = sparse_semi_structured_from_dense_cutlass(dense)
    assert found[0] is values
    assert torch.equal(found[0], right[0])
    assert found[1].dtype == right[1].dtype
    assert torch.equal(found[1], right[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_kept_zeros_stay_in_their_places(dtype):
    values, metadata, dense = weight(64, 256, dtype, zeros=True)
    found = sparse_semi_structured_to_dense_cutlass(*arrange(values, metadata, "cutlass"))
    assert torch.equal(found, dense)


def cusparselt_offset(row, column, rows):
    """Of a word of metadata, as ``MetadataCuSparseLt::_get_meta_offset`` of PyTorch and what it calls put it.

    In words of 16 columns: blocks of 128 x 64 weights, in them blocks of 32 x 32, in them those of 16 x 16.
    """
    block = (row // 128 + column // 4 * (rows // 128)) * 512
    block += row % 128 // 32 * 64 + column % 4 // 2 * 256
    return block + row % 8 * 8 + row % 32 // 16 * 4 + column % 2 * 2 + row % 16 // 8


@pytest.mark.parametrize("shape", [(128, 128), (384, 128), (256, 640)], ids=str)
def test_metadata_in_the_order_of_cusparselt(shape):
    rows, words = shape[0], shape[1] // 16
    found = places_of(blocked, rows, words)
    wanted = torch.empty_like(found)
    for row, column in itertools.product(range(rows), range(words)):
        wanted[cusparselt_offset(row, column, rows)] = row * words + column
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES, ids=name)
def test_what_cusparselt_is_given_and_how_values_are_renewed(monkeypatch, dtype, kind):
    library = install(monkeypatch, Library(kind))
    for seed, zeros in enumerate((False, True, False)):
        values, metadata, dense = weight(128, 256, dtype, zeros, seed)
        packed, none = arrange(values, metadata, "cusparselt")
        assert none is None
        assert packed.shape == (128, 256 * 9 // 16)
        assert torch.equal(library.dense(packed, 256), dense)
        new = values.flip(0)
        renewed = arrange_new_values(packed, new, metadata)
        again, _ = arrange(new, metadata, "cusparselt")
        assert torch.equal(library.dense(renewed, 256), library.dense(again, 256))
        assert torch.equal(library.dense(packed, 256), dense)
    # One to learn its layout; then for metadata, or for everything.
    assert library.compressed == {"known": 1, "values known": 1 + 6, "unknown": 1 + 9}[kind]
    assert list(two_four_layouts._knowledge.values()) == [kind]


@pytest.mark.parametrize(("shape", "dtype"), [((64, 96), torch.float16), ((128, 128), torch.int8)], ids=str)
def test_sizes_and_dtypes_whose_metadata_cusparselt_arranges(monkeypatch, shape, dtype):
    library = install(monkeypatch, Library("values known"))
    values, metadata, dense = weight(*shape, dtype, zeros=True)
    packed, _ = arrange(values, metadata, "cusparselt")
    assert packed.shape == (shape[0], shape[1] * (10 if dtype == torch.int8 else 9) // 16)
    assert torch.equal(library.dense(packed, shape[1]), dense)
    assert list(two_four_layouts._knowledge.values()) == ["values known"]


def test_nothing_is_learned_in_a_capture(library, monkeypatch):
    values, metadata, dense = weight(128, 128, torch.bfloat16)
    with monkeypatch.context() as patch:
        recorded(patch)
        packed, _ = arrange(values, metadata, "cusparselt")
    assert torch.equal(library.dense(packed, 128), dense)
    assert two_four_layouts._knowledge == {}
