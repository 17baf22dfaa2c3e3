"""What the extension does with 2:4 metadata: gathering, unpacking, checking it, CUTLASS's layout of it."""

from __future__ import annotations

import re

import pytest
import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from sparsekern.cpp.two_four_packing import (
    check_metadata,
    from_cutlass,
    gather_two_four,
    pack_two_four,
    to_cutlass,
    unpack_two_four,
)

pytestmark = pytest.mark.usefixtures("poisoned")

# By size of element: bits of any kind, NaN among them.
BITS = [torch.uint8, torch.int16, torch.int32, torch.int64]
VIEWS = {torch.int16: torch.bfloat16, torch.int32: torch.float32, torch.int64: torch.float64}
SHAPES = [(1, 4), (3, 8), (5, 12), (65, 100), (130, 1028)]
PAIRS = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])


@pytest.fixture(params=BITS, ids=lambda dtype: f"{dtype.itemsize} bytes")
def bits(request):
    return request.param


def random_bits(shape, dtype):
    generator = torch.Generator().manual_seed(sum(shape))
    columns = shape[1] * dtype.itemsize
    return torch.randint(0, 256, (shape[0], columns), generator=generator, dtype=torch.uint8).view(dtype)


def joined(kept):
    """Metadata of the two columns of each group, (rows, groups, 2)."""
    nibbles = (kept[..., 0] | kept[..., 1] << 2).to(torch.uint8)
    if nibbles.shape[1] % 2:
        nibbles = torch.cat([nibbles, nibbles.new_zeros(nibbles.shape[0], 1)], 1)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4


def random_metadata(rows, columns):
    generator = torch.Generator().manual_seed(rows + columns)
    kept = PAIRS[torch.randint(0, 6, (rows, columns // 4), generator=generator)]
    return joined(kept), kept


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gather_copies_bits(bits, shape):
    dense = random_bits(shape, bits)
    metadata, kept = random_metadata(*shape)
    right = dense.view(shape[0], -1, 4).gather(-1, kept).view(shape[0], -1)
    assert torch.equal(gather_two_four(dense, metadata), right)
    if bits in VIEWS:
        got = gather_two_four(dense.view(VIEWS[bits]), metadata)
        assert torch.equal(got.view(bits), right)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpack_copies_bits_among_zeros(bits, shape):
    values = random_bits((shape[0], shape[1] // 2), bits)
    metadata, kept = random_metadata(*shape)
    zeros = torch.zeros(shape[0], shape[1] // 4, 4, dtype=bits)
    right = zeros.scatter_(-1, kept, values.view(shape[0], -1, 2)).view(shape)
    assert torch.equal(unpack_two_four(values, metadata), right)
    if bits in VIEWS:
        got = unpack_two_four(values.view(VIEWS[bits]), metadata)
        assert torch.equal(got.view(bits), right)


def test_any_byte_names_columns_of_its_own_group(bits):
    """Unchecked metadata is memory safe; where both columns are one, the second value is written."""
    metadata = torch.arange(256, dtype=torch.uint8).view(2, 128)
    columns = torch.stack([metadata >> shift & 3 for shift in (0, 2, 4, 6)], -1).view(2, 256, 2).long()
    dense = random_bits((2, 1024), bits)
    values = dense.view(2, 256, 4).gather(-1, columns)
    assert torch.equal(gather_two_four(dense, metadata), values.view(2, 512))
    right = torch.zeros(2, 256, 4, dtype=bits)
    for place in (0, 1):
        right.scatter_(-1, columns[..., place : place + 1], values[..., place : place + 1])
    assert torch.equal(unpack_two_four(values.reshape(2, 512), metadata), right.view(2, 1024))


@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (0, 0)], ids=str)
def test_nothing(shape):
    values, metadata = torch.zeros(shape[0], shape[1] // 2), torch.zeros(shape[0], shape[1] // 8).byte()
    assert unpack_two_four(values, metadata).shape == shape
    assert gather_two_four(torch.zeros(shape), metadata).shape == values.shape
    check_metadata(metadata, *shape)


def test_same_bits_for_any_number_of_threads(threads):
    weight = torch.randn(301, 2052)
    metadata, _ = random_metadata(*weight.shape)
    results = []
    for count in (1, 2, 3):
        threads(count)
        values = gather_two_four(weight, metadata)
        results.append((values, unpack_two_four(values, metadata)))
    for values, dense in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(dense, results[0][1])


def test_other_memory_orders():
    metadata, _ = random_metadata(8, 16)
    wide = torch.randn(16, 8)
    metadata_of_columns = metadata.t().contiguous().t()
    values = gather_two_four(wide.t(), metadata_of_columns)
    assert torch.equal(values, gather_two_four(wide.t().contiguous(), metadata))
    dense = unpack_two_four(values.t().contiguous().t(), metadata_of_columns)
    assert torch.equal(dense, unpack_two_four(values, metadata))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_metadata_of_ascending_columns_is_right(shape):
    check_metadata(random_metadata(*shape)[0], *shape)


@pytest.mark.parametrize(("row", "group"), [(0, 0), (3, 5), (4, 8), (4, 7)])
@pytest.mark.parametrize("columns", [(1, 1), (0, 0), (3, 0), (2, 1), (3, 3)], ids=str)
def test_the_first_wrong_group_is_named(row, group, columns):
    kept = random_metadata(5, 36)[1]
    kept[4, 8] = 2
    kept[row, group] = torch.tensor(columns)
    message = (
        "metadata: expected two ascending columns for each group, "
        f"got {columns[0]} and {columns[1]} in row {row}, group {group}"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_metadata(joined(kept), 5, 36)


def test_a_nibble_of_no_group_is_0():
    metadata, _ = random_metadata(5, 36)
    metadata[2, 4] |= 0x40
    message = "metadata: expected 0 behind the last group of a row, got 4 in row 2"
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_metadata(metadata, 5, 36)
    check_metadata(random_metadata(5, 40)[0], 5, 40)


CUTLASS = {torch.float16: (32, 64), torch.bfloat16: (32, 64), torch.int8: (16, 128)}


@pytest.fixture(params=CUTLASS, ids=lambda dtype: str(dtype).partition(".")[2])
def cutlass_dtype(request):
    return request.param


def with_zeros(shape, dtype, seed):
    """A weight with many zeros of either sign and many ties, of which half of each group is pruned."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-2, 3, shape, generator=generator) * (
        torch.rand(shape, generator=generator) < 0.1 + 0.2 * (seed % 5)
    )
    sign = torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    return (weight * sign).to(dtype)


def same_bits(tensor, other):
    assert tensor.dtype == other.dtype
    assert tensor.shape == other.shape
    assert torch.equal(tensor.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("multiples", [(1, 1), (2, 1), (1, 3), (3, 2), (5, 5)], ids=str)
def test_to_cutlass_is_as_pytorch_has_it(cutlass_dtype, multiples):
    shape = [size * count for size, count in zip(CUTLASS[cutlass_dtype], multiples)]
    for seed in range(10):
        given = pack_two_four([with_zeros(shape, cutlass_dtype, seed)], False, False)
        dense = unpack_two_four(*given)
        right = sparse_semi_structured_from_dense_cutlass(dense)
        got = to_cutlass(*given)
        for tensor, other in zip(got, right):
            same_bits(tensor, other)
        back = from_cutlass(*got)
        check_metadata(back[1], *shape)
        assert torch.equal(unpack_two_four(*back), dense)
        for tensor, other in zip(to_cutlass(*back), right):
            same_bits(tensor, other)


def test_to_cutlass_of_every_group(cutlass_dtype):
    """Each pair of places with each pair of values, zeros of either sign among them."""
    numbers = torch.tensor([-1.0, -0.0, 0.0, 2.0]).to(cutlass_dtype)
    values = torch.cartesian_prod(numbers, numbers).repeat(6, 1)
    kept = PAIRS.repeat_interleave(16, 0)
    rows, columns = CUTLASS[cutlass_dtype]
    times = rows * columns // 4
    values = values.repeat(times, 1)[:times].view(rows, -1)
    metadata = joined(kept.repeat(times, 1)[:times].view(rows, columns // 4, 2))
    got = to_cutlass(values, metadata)
    right = sparse_semi_structured_from_dense_cutlass(unpack_two_four(values, metadata))
    for tensor, other in zip(got, right):
        same_bits(tensor, other)


def test_cutlass_has_the_same_bits_for_any_number_of_threads(threads):
    given = pack_two_four([with_zeros((320, 1024), torch.bfloat16, 0)], False, False)
    threads(1)
    right = to_cutlass(*given)
    back = from_cutlass(*right)
    for count in (2, 3):
        threads(count)
        for tensor, other in zip((*to_cutlass(*given), *from_cutlass(*right)), (*right, *back)):
            same_bits(tensor, other)


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        (torch.bfloat16, (32, 100), "columns: of 64 for 2 bytes, got 100; the nearest are 64 and 128"),
        (torch.float16, (48, 64), "rows: of 32 for 2 bytes, got 48; the nearest are 32 and 64"),
        (torch.int8, (8, 128), "rows: of 16 for 1 byte, got 8; the nearest are 16"),
        (torch.int8, (16, 192), "columns: of 128 for 1 byte, got 192; the nearest are 128 and 256"),
    ],
    ids=str,
)
def test_to_cutlass_says_which_sizes_it_takes(dtype, shape, message):
    given = pack_two_four([torch.ones(shape, dtype=dtype)], False, False)
    message = message.replace(": of", ": CUTLASS's layout needs a multiple of").replace(
        " for", " for elements of"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        to_cutlass(*given)


def test_to_cutlass_refuses_other_types():
    given = pack_two_four([torch.ones(32, 64)], False, False)
    message = (
        "values: CUTLASS's layout expects float16, bfloat16 or int8, got torch.float32: "
        "the hardware's sparsity of float32 is 1:2"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        to_cutlass(*given)
    with pytest.raises(TypeError, match=r"got torch\.float64$"):
        to_cutlass(*pack_two_four([torch.ones(32, 64).double()], False, False))


def test_from_cutlass_checks_what_it_is_given():
    values, words = to_cutlass(*pack_two_four([torch.ones(32, 64).half()], False, False))
    message = "metadata: expected torch.int16 for values of torch.float16, got torch.int32"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        from_cutlass(values, words.int())
    with pytest.raises(ValueError, match=r"^metadata: expected bytes 256, got 128$"):
        from_cutlass(values, words[:, :2].contiguous())
    with pytest.raises(ValueError, match="metadata: expected two ascending columns"):
        from_cutlass(values, torch.zeros_like(words))
