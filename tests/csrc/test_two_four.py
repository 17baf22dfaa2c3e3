"""Packing 2:4 weights, called with addresses."""

import numpy as np
import pytest
from hypothesis import given

from sparsekern import _C
from tests.csrc import calls
from tests.csrc.memory import Buffer
from tests.csrc.numerics import generators, integer, pick, round_to_bfloat16
from tests.csrc.two_four import PAIRS, as_metadata, gathered, largest_pairs, largest_tiles, spread

ISA = _C.isa_levels()
FLOAT16, BFLOAT16, FLOAT32, FLOAT64, INT8 = range(5)
BYTES = (2, 2, 4, 8, 1)
ELEMENTS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def stored(numbers, kind):
    if kind == BFLOAT16:
        return round_to_bfloat16(numbers)
    return numbers.astype((np.float16, None, np.float32, np.float64, np.int8)[kind])


def random_pairs(generator, rows, groups):
    return PAIRS[generator.integers(0, 6, (rows, groups))]


def buffers(values, pairs, at_page_end):
    return Buffer(values, at_page_end), Buffer(as_metadata(pairs), at_page_end)


def empty_like(packing, at_page_end):
    return tuple(
        Buffer(np.full(part.count, 0x5A, np.uint8).astype(part.array.dtype), at_page_end) for part in packing
    )


def packing(parts):
    """A packing as the extension takes it, and the tuples that are wrong in its place."""
    right = tuple(tuple(part) for part in parts)
    wrong = [None, (right[0],)]
    for place, part in enumerate(parts):
        address, count = calls.data(part)
        others = [(value, count.value) for value in address.wrong] + [
            (address.value, value) for value in count.wrong
        ]
        wrong += [(other, right[1]) if place == 0 else (right[0], other) for other in others]
    return calls.Argument(right, tuple(wrong))


def size(value, multiple=1):
    return calls.Argument(value, (*calls.size(value).wrong, value + multiple, value - multiple))


def check(generator, call, *expected):
    calls.refuse_wrong_arguments(call, generator, tries=6)
    call()
    for output, contents in zip(call.outputs, expected, strict=True):
        np.testing.assert_array_equal(output.array.view(np.uint8), contents.reshape(-1).view(np.uint8))
        assert output.is_intact()


@given(generators())
def test_the_largest_of_each_group_are_packed(generator):
    rows, groups, kind = integer(generator, 1, 140), integer(generator, 1, 90), integer(generator, 0, 4)
    threads, at_page_end = integer(generator, 1, 3), pick(generator, (False, True))
    _C.set_isa(pick(generator, ISA))
    numbers = generator.integers(-generator.choice([2, 100]), 101, (rows, 4 * groups)) / (
        1 if kind == INT8 else 2
    )
    numbers += 0.0
    weight = stored(numbers, kind)
    pairs = largest_pairs(np.abs(numbers))
    source, result = Buffer(weight, at_page_end), buffers(gathered(weight, pairs), pairs, at_page_end)
    packed = empty_like(result, at_page_end)
    arguments = [
        calls.choice(kind, 5),
        size(rows),
        size(4 * groups, 4),
        *calls.data(source),
        packing(packed),
        calls.threads(threads),
    ]
    check(generator, calls.Call(_C.two_four.pack, arguments, packed), *(part.array for part in result))


@given(generators())
def test_the_largest_of_each_tile_are_packed_both_ways(generator):
    down, groups, kind = integer(generator, 1, 40), integer(generator, 1, 40), integer(generator, 0, 4)
    threads, at_page_end = integer(generator, 1, 3), pick(generator, (False, True))
    _C.set_isa(pick(generator, ISA))
    numbers = generator.integers(-generator.choice([2, 100]), 101, (4 * down, 4 * groups)) / (
        1 if kind == INT8 else 2
    )
    numbers += 0.0
    weight = stored(numbers, kind)
    pairs = largest_tiles(np.abs(numbers))
    kept = np.ascontiguousarray(spread(np.ones((4 * down, 2 * groups), bool), pairs).T)
    pairs_t = np.nonzero(kept.reshape(4 * groups, down, 4))[-1].reshape(4 * groups, down, 2)
    source, result = Buffer(weight, at_page_end), buffers(gathered(weight, pairs), pairs, at_page_end)
    transpose = np.ascontiguousarray(weight.T)
    result_t = buffers(gathered(transpose, pairs_t), pairs_t, at_page_end)
    packed, packed_t = empty_like(result, at_page_end), empty_like(result_t, at_page_end)
    both = bool(generator.integers(2))
    other = packing(packed_t)
    arguments = [
        calls.choice(kind, 5),
        size(4 * down, 4),
        size(4 * groups, 4),
        *calls.data(source),
        packing(packed),
        calls.Argument(other.value, other.wrong[1:]) if both else calls.Argument(None, other.wrong[1:]),
        calls.threads(threads),
    ]
    outputs, expected = (packed + packed_t, result + result_t) if both else (packed, result)
    call = calls.Call(_C.two_four.pack_transposable, arguments, outputs)
    check(generator, call, *(part.array for part in expected))


@given(generators())
def test_values_move_to_and_from_their_places(generator):
    rows, groups, element = (
        integer(generator, 1, 60),
        integer(generator, 1, 40),
        pick(generator, (1, 2, 4, 8)),
    )
    threads, at_page_end = integer(generator, 1, 3), pick(generator, (False, True))
    pairs = random_pairs(generator, rows, groups)
    numbers = generator.integers(0, 256, (rows * 4 * groups, element), np.uint8).view(ELEMENTS[element])
    dense = numbers.reshape(rows, 4 * groups)
    values, metadata = buffers(gathered(dense, pairs), pairs, at_page_end)
    sizes = [size(rows), size(4 * groups, 4)]
    head, last = [calls.element_size(element), *sizes], calls.threads(threads)
    source, (to, _) = Buffer(dense, at_page_end), empty_like((values, metadata), at_page_end)
    arguments = [*head, *calls.data(source), *calls.data(metadata), *calls.data(to), last]
    check(generator, calls.Call(_C.two_four.gather, arguments, [to]), values.array)
    (whole,) = empty_like((source,), at_page_end)
    arguments = [*head, packing((values, metadata)), *calls.data(whole), last]
    check(
        generator, calls.Call(_C.two_four.unpack, arguments, [whole]), spread(gathered(dense, pairs), pairs)
    )
    check(generator, calls.Call(_C.two_four.check_metadata, [*sizes, *calls.data(metadata)]))


@given(generators())
def test_damaged_metadata_is_refused_and_harmless(generator):
    """Every other byte is refused by the check; without it, nothing beyond the group is read or written."""
    rows, groups = integer(generator, 1, 20), integer(generator, 1, 20)
    at_page_end = pick(generator, (False, True))
    good = as_metadata(random_pairs(generator, rows, groups))
    metadata = Buffer(good, at_page_end)
    for _ in range(8):
        metadata.array[:] = good.reshape(-1)
        at = generator.integers(good.size)
        metadata.array[at] = generator.integers(256)
        nibbles = metadata.array.reshape(good.shape)[:, :, None] >> np.array([0, 4]) & 15
        nibbles = nibbles.reshape(rows, -1)
        valid = (nibbles[:, :groups] & 3) < nibbles[:, :groups] >> 2
        if valid.all() and not nibbles[:, groups:].any():
            _C.two_four.check_metadata(rows, 4 * groups, *metadata)
        else:
            with pytest.raises(ValueError, match=r"^metadata: expected"):
                _C.two_four.check_metadata(rows, 4 * groups, *metadata)
    values = Buffer(generator.integers(1, 99, (rows, 2 * groups)).astype(np.float32), at_page_end)
    dense = Buffer(np.full((rows, 4 * groups), np.nan, np.float32), at_page_end)
    packed = tuple(values), tuple(metadata)
    _C.two_four.unpack(4, rows, 4 * groups, packed, *dense, 1)
    assert set(dense.array) <= {0.0, *values.array}
    gathered_back = Buffer(np.full(values.count, np.nan, np.float32), at_page_end)
    _C.two_four.gather(4, rows, 4 * groups, *dense, *metadata, *gathered_back, 1)
    assert set(gathered_back.array) <= set(dense.array)
    assert dense.is_intact()
    assert gathered_back.is_intact()


@given(generators())
def test_cutlass_layouts_hold_the_same_matrix(generator):
    down, across, element = integer(generator, 1, 3), integer(generator, 1, 3), pick(generator, (1, 2))
    threads, at_page_end = integer(generator, 1, 3), pick(generator, (False, True))
    rows, columns = down * (32 if element == 2 else 16), across * (64 if element == 2 else 128)
    pairs = random_pairs(generator, rows, columns // 4)
    numbers = generator.integers(0, 3, (rows, columns)).astype(ELEMENTS[element])
    packed = buffers(gathered(numbers, pairs), pairs, at_page_end)
    cutlass, back = empty_like(packed, at_page_end), empty_like(packed, at_page_end)
    sizes = [calls.Argument(element, (0, 3, 4, 8, -1)), size(rows, 8), size(columns, 32)]
    dense = spread(packed[0].array.reshape(rows, -1), pairs)
    for function, source, target in (
        (_C.two_four.to_cutlass, packed, cutlass),
        (_C.two_four.from_cutlass, cutlass, back),
    ):
        arguments = [*sizes, packing(source), packing(target), calls.threads(threads)]
        call = calls.Call(function, arguments, target)
        calls.refuse_wrong_arguments(call, generator, tries=6)
        call()
        assert all(part.is_intact() for part in target)
    _C.two_four.check_metadata(rows, columns, *back[1])
    unpacked = Buffer(np.ones_like(dense), at_page_end)
    _C.two_four.unpack(element, rows, columns, tuple(map(tuple, back)), *unpacked, 1)
    np.testing.assert_array_equal(unpacked.array.reshape(rows, columns), dense)


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 128), (32, 0), (2**40, 0), (0, 2**40)])
def test_no_weights_are_no_work(rows, columns):
    nothing = (0, 0)
    packed = nothing, nothing
    _C.two_four.pack(2, rows, columns, *nothing, packed, 1)
    _C.two_four.pack_transposable(2, rows, columns, *nothing, packed, packed, 1)
    _C.two_four.gather(4, rows, columns, *nothing, *nothing, *nothing, 1)
    _C.two_four.unpack(4, rows, columns, packed, *nothing, 1)
    _C.two_four.check_metadata(rows, columns, *nothing)
    _C.two_four.to_cutlass(2, rows, columns, packed, packed, 1)
    _C.two_four.from_cutlass(2, rows, columns, packed, packed, 1)
