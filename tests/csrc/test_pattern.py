"""Building, checking and using packed patterns, called with addresses."""

import numpy as np
import pytest
from hypothesis import given

from sparsekern import _C
from tests.csrc import calls
from tests.csrc.memory import Buffer
from tests.csrc.numerics import generators, integer, pick
from tests.csrc.patterns import TILE_SIZES, as_matrix, draw_pattern, pack_mask, random_mask

ELEMENTS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def draw_words(generator):
    """A pattern, its words, where buffers are, and a number of threads."""
    pattern, at_page_end = draw_pattern(generator), pick(generator, (False, True))
    return pattern, Buffer(pattern.words, at_page_end), at_page_end, integer(generator, 1, 3)


def run(generator, call, *expected):
    """The call does what is expected, and refuses what is wrong."""
    calls.refuse_wrong_arguments(call, generator, tries=6)
    call()
    for output, contents in zip(call.outputs, expected, strict=True):
        np.testing.assert_array_equal(output.array, contents)
        assert output.is_intact()


@given(generators())
def test_a_mask_is_packed_word_for_word(generator):
    pattern, _, at_page_end, threads = draw_words(generator)
    tile_size, complete = pick(generator, TILE_SIZES), pick(generator, (False, True))
    # Any byte but 0 is True.
    source = Buffer(pattern.mask * generator.integers(1, 256, pattern.mask.shape, np.uint8), at_page_end)
    make = calls.Call(
        _C.pattern.mask_builder,
        [
            *calls.data(source),
            calls.Argument(
                pattern.mask.shape, ((), (2, 3, 4), (0, 4), (-1, 4), (2**31, 1), (2**62,) * 4, (1.5, 2))
            ),
            calls.Argument(tile_size, (0, 7, -8, 128, 2**63 - 1)),
            calls.Argument(complete),
            calls.threads(threads),
        ],
    )
    calls.refuse_wrong_arguments(make, generator, tries=6)
    builder = make()
    expected = pack_mask(pattern.mask, tile_size, complete).words
    assert builder.words == expected.size
    data = Buffer(np.full(expected.size, -1, np.int32), at_page_end)
    fill = [*calls.words(data), calls.threads(threads)]
    run(generator, calls.Call(builder.fill, fill, [data]), expected)
    _C.pattern.validate(*data, threads)
    assert _C.pattern.nnz(*data) == pattern.nnz


@given(generators())
def test_random_patterns_have_so_many_positions(generator):
    rows, cols = integer(generator, 1, 200), integer(generator, 1, 200)
    block, tile_size = pick(generator, (1, 1, 3, 32, 64, 300)), pick(generator, TILE_SIZES)
    density = pick(generator, (0.0, 0.001, 0.1, 0.5, 0.9, 1.0))
    blocks = -(-rows // block) * -(-cols // block)
    count, seed = round(density * blocks), int(generator.integers(2**63))
    shape = calls.Argument((rows, cols), ((rows,), (rows, 0), (2**31, cols), (rows, 2**63 - 1), None))
    arguments = [
        shape,
        calls.Argument(count, (-1, blocks + 1, *calls.HUGE, -(2**63))),
        calls.Argument(block, (0, -1, 65537, 2**63 - 1)),
        calls.Argument(seed, (-1, 2**64, 0.5)),
        calls.Argument(tile_size, (0, 7, -8, 128, 2**63 - 1)),
        calls.threads(1),
    ]
    make = calls.Call(_C.pattern.random_builder, arguments)
    calls.refuse_wrong_arguments(make, generator, tries=6)
    built = []
    for threads in (1, 3):
        builder = _C.pattern.random_builder((rows, cols), count, block, seed, tile_size, threads)
        built.append(Buffer(np.zeros(builder.words, np.int32), True))
        builder.fill(*built[-1], threads)
        assert built[-1].is_intact()
    np.testing.assert_array_equal(built[0].array, built[1].array)
    mask = Buffer(np.zeros((rows, cols), bool), True)
    _C.pattern.to_mask(*built[0], *mask, 1)
    active = mask.array.reshape(rows, cols)[::block, ::block]
    assert active.sum() == count
    whole = active.repeat(block, 0).repeat(block, 1)[:rows, :cols]
    np.testing.assert_array_equal(built[0].array, pack_mask(whole, tile_size).words)


@given(generators())
def test_values_move_to_and_from_their_places(generator):
    pattern, words, at_page_end, threads = draw_words(generator)
    size = pick(generator, sorted(ELEMENTS))
    numbers = generator.integers(0, 256, (pattern.mask.size, size), np.uint8).view(ELEMENTS[size])[:, 0]
    dense, values = Buffer(numbers, at_page_end), Buffer(numbers[pattern.flat], at_page_end)
    rest = [calls.element_size(size), calls.threads(threads)]
    packed, unpacked = Buffer(values.array + 1, at_page_end), Buffer(dense.array + 1, at_page_end)
    arguments = [*calls.words(words), *calls.data(dense), *calls.data(packed), *rest]
    run(generator, calls.Call(_C.pattern.pack, arguments, [packed]), values.array)
    arguments = [*calls.words(words), *calls.data(values), *calls.data(unpacked), *rest]
    expected = np.where(pattern.mask.reshape(-1), numbers, 0)
    run(generator, calls.Call(_C.pattern.unpack, arguments, [unpacked]), expected)


@given(generators())
def test_values_move_to_another_pattern(generator):
    pattern, words, at_page_end, threads = draw_words(generator)
    mask = pattern.mask ^ random_mask(generator, pattern.mask.shape, 0.3)
    other = pack_mask(mask, pattern.tile_size, pick(generator, (False, True)))
    to_words = Buffer(other.words, at_page_end)
    sizes = generator.choice(sorted(ELEMENTS), generator.integers(0, 4))
    vectors, expected = [], []
    for size in (4, *sizes):
        dense = generator.integers(1, 256, (mask.size, size), np.uint8).view(ELEMENTS[size])[:, 0]
        result = Buffer(dense[other.flat], at_page_end)
        vectors.append((Buffer(dense[pattern.flat], at_page_end), result, int(size)))
        expected.append(np.where(pattern.mask.reshape(-1)[other.flat], dense[other.flat], 0))
    result, outputs = vectors[0][1], [result for _, result, _ in vectors]
    arguments = [
        *(calls.words(words) + calls.data(vectors[0][0]) + calls.words(to_words) + calls.data(result)),
        calls.element_size(4),
        calls.threads(threads),
    ]
    run(generator, calls.Call(_C.pattern.transfer, arguments, [result]), expected[0])
    result.array[:] += 1
    tuples = [(*source, *target, size) for source, target, size in vectors]
    broken = []
    for place in range(5):
        for wrong in (-1, 3, 2**40 + 1, 2**63 - 1):
            broken.append([tuple(wrong if i == place else v for i, v in enumerate(tuples[0])), *tuples[1:]])
    if pattern.nnz and other.nnz:
        both = [(0, *tuples[0][1:]), (*tuples[0][:2], 0, *tuples[0][3:])]
        broken += [[wrong, *tuples[1:]] for wrong in both] + [[*tuples, wrong] for wrong in both]
    wrong_addresses = {tuple(map(tuple, b)) for b in broken if b[0][0] in (3, 2**40 + 1, 2**63 - 1)}
    wrong_addresses |= {tuple(map(tuple, b)) for b in broken if b[0][2] in (3, 2**40 + 1, 2**63 - 1)}
    counted = [b for b in broken if tuple(map(tuple, b)) not in wrong_addresses]
    all_words = calls.words(words) + calls.words(to_words)
    arguments = [*all_words, calls.Argument(tuples, tuple(map(list, counted))), calls.threads(threads)]
    run(generator, calls.Call(_C.pattern.transfer_all, arguments, outputs), *expected)


@given(generators())
def test_positions_are_counted(generator):
    pattern, words, at_page_end, threads = draw_words(generator)
    rows, cin = pattern.mask.shape[:2]
    groups = int(generator.choice([g for g in range(1, rows + 1) if rows % g == 0]))
    grouped = pattern.mask.reshape(groups, rows // groups, cin, -1).sum((1, 3))
    for function, extra, expected in (
        (_C.pattern.fan_in, [], pattern.matrix.sum(1)),
        (_C.pattern.fan_out, [calls.Argument(groups, (0, -1, rows + 1, *calls.HUGE))], grouped.reshape(-1)),
        (_C.pattern.value_rows, [], pattern.rows),
        (_C.pattern.value_cols, [], pattern.cols),
    ):
        out = Buffer(np.full(expected.size, -1, np.int64), at_page_end)
        arguments = [*calls.words(words), *extra, *calls.data(out), calls.threads(threads)]
        run(generator, calls.Call(function, arguments, [out]), expected)
    mask = Buffer(np.full(pattern.mask.shape, 2, np.uint8), at_page_end)
    arguments = [*calls.words(words), *calls.data(mask), calls.threads(threads)]
    run(generator, calls.Call(_C.pattern.to_mask, arguments, [mask]), pattern.mask.reshape(-1))
    other = Buffer(pattern.words, not at_page_end)
    assert _C.pattern.checksum(*words) == _C.pattern.checksum(*other)
    other.array[generator.integers(other.count)] ^= 1
    assert _C.pattern.checksum(*words) != _C.pattern.checksum(*other)
    for wrong in ((0, 16), (words.address + 1, 16)):
        with pytest.raises(ValueError, match=r"^data: "):
            _C.pattern.checksum(*wrong)


def damage(generator, words):
    """Other contents, or another length: in the header or the index as often as in the bits."""
    words = words.copy()
    for _ in range(generator.integers(1, 3)):
        at = int(generator.integers(generator.choice([16, min(48, len(words)), len(words)])))
        value = int(words[at])
        choices = (
            0,
            1,
            -1,
            value + 1,
            value - 1,
            -value,
            value ^ 1 << int(generator.integers(32)),
            2**31 - 1,
            -(2**31),
        )
        words[at] = np.array(choices[generator.integers(len(choices))], np.int64).astype(np.int32)
    if generator.random() < 0.2:
        words = words[: generator.integers(len(words))]
    if generator.random() < 0.1:
        words = np.append(words, np.zeros(generator.integers(1, 9), np.int32))
    return words


@given(generators())
def test_damaged_patterns_are_refused(generator):
    """What `validate` takes is a pattern, word for word: nothing else reaches what relies on it."""
    pattern, _, at_page_end, _ = draw_words(generator)
    for _ in range(20):
        words = Buffer(damage(generator, pattern.words), at_page_end)
        _, refusal = calls.outcome(_C.pattern.validate, *words, 1)
        if refusal:
            assert str(refusal).startswith("pattern: ")
            continue
        _, tile_size, rows, cols, tile_rows, tile_cols, tiles = map(int, words.array[:7])
        dims, cin, kh, kw = map(int, words.array[10:14])
        shape = (rows, cin, kh, kw)[:dims]
        mask = Buffer(np.zeros(rows * cols, bool), at_page_end)
        _C.pattern.to_mask(*words, *mask, 1)
        mask = mask.array.reshape(shape)
        complete = tiles == tile_rows * tile_cols
        np.testing.assert_array_equal(words.array, pack_mask(mask, tile_size, complete).words)
        assert as_matrix(mask).shape == (rows, cols)


@given(generators())
def test_damaged_headers_are_refused_by_every_reader(generator):
    """The header says where all else is, and how long it is; `nnz` reads no more than it."""
    pattern, words, at_page_end, _ = draw_words(generator)
    for word in (0, 1, 4, 5, 6, 7, 10, 14, 15):
        damaged = pattern.words.copy()
        damaged.view(np.uint32)[word] ^= 1 << int(generator.integers(32))
        other = Buffer(damaged, at_page_end)
        with pytest.raises(ValueError, match=r"^pattern: "):
            _C.pattern.nnz(*other)
    assert _C.pattern.nnz(*words) == pattern.nnz
