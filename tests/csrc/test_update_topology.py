"""`update_topology`, with dense and with listed scores, called with addresses."""

import numpy as np
from hypothesis import given

from sparsekern import _C
from tests.csrc import calls
from tests.csrc.memory import Buffer
from tests.csrc.numerics import generators, integer, pick, round_to_bfloat16
from tests.csrc.patterns import draw_pattern, pack_mask

FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = range(4)
# Few numbers, so that most of them are equal to others; NaN is above infinity, and -0.0 is 0.0.
NUMBERS = np.array([-np.inf, -2.0, -1.0, -0.0, 0.0, 1.0, 2.0, 3.0, np.inf, np.nan, -np.nan])


def draw_numbers(generator, shape):
    if generator.random() < 0.5:
        return generator.choice(NUMBERS, shape)
    # In halves up to 31.5: all of the types hold these.
    return generator.integers(-63, 64, shape) / 2


def stored(numbers, kind):
    if kind == BFLOAT16:
        bits = round_to_bfloat16(np.nan_to_num(numbers, posinf=0.0, neginf=0.0))
        special = np.asarray(numbers, np.float32).view(np.uint32) >> 16
        return np.where(np.isfinite(numbers), bits, special).astype(np.uint16)
    return np.asarray(numbers, {FLOAT16: np.float16, FLOAT32: np.float32, FLOAT64: np.float64}[kind])


def ranked(keys, positions):
    """Indices of the items, the largest key first, equal ones by position; NaN is largest."""
    nan = np.isnan(keys)
    return np.lexsort((positions, -np.where(nan, 0, keys), ~nan))


def updated(pattern, values, scores, count, by_value):
    """The mask after the update: `values` by value, `scores` as a matrix."""
    active = pattern.rows * pattern.matrix.shape[1] + pattern.cols
    # The smallest magnitudes, and of equal ones the first positions.
    smallest = np.lexsort((active, np.where(np.isnan(values), np.inf, np.abs(values)), np.isnan(values)))
    mask = pattern.matrix.copy().reshape(-1)
    mask[active[smallest[:count]]] = False
    free = (~mask).nonzero()[0]
    keys = scores.reshape(-1)[free]
    mask[free[ranked(keys if by_value else np.abs(keys), free)[:count]]] = True
    return mask.reshape(pattern.matrix.shape)


def as_weight(matrix, shape):
    """A matrix with columns in (kh, kw, cin) order in the weight's own shape."""
    if len(shape) == 2:
        return matrix
    rows, cin, kh, kw = shape
    return matrix.reshape(rows, kh, kw, cin).transpose(0, 3, 1, 2)


def wrong_vectors(buffer, kind):
    """Tuples of a type, an address and a count that are wrong in the place of a right one."""
    address, count = calls.data(buffer)
    wrong = [(code, *buffer) for code in (-1, 4, 2**31 - 1, -(2**31), 2**31, None)]
    wrong += [(kind, value, count.value) for value in address.wrong]
    return (*wrong, *((kind, address.value, value) for value in count.wrong), (kind, *buffer, 0), None)


def draw_problem(generator):
    pattern = draw_pattern(generator, most=pick(generator, (150, 150, 150, 420)))
    count = round(pick(generator, (0.0, 0.1, 0.5, 1.0)) * pattern.nnz)
    kinds = pick(generator, range(4)), pick(generator, range(4))
    values = draw_numbers(generator, pattern.nnz)
    scores = draw_numbers(generator, pattern.matrix.shape)
    by_value, at_page_end = pick(generator, (False, True)), pick(generator, (False, True))
    mask = updated(pattern, values, scores, count, by_value)
    expected = pack_mask(as_weight(mask, pattern.mask.shape), pattern.tile_size, complete=True).words
    return {
        "generator": generator,
        "pattern": pattern,
        "words": Buffer(pattern.words, at_page_end),
        "values": Buffer(stored(values, kinds[0]), at_page_end),
        "scores": scores,
        "kinds": kinds,
        "count": count,
        "by_value": by_value,
        "threads": integer(generator, 1, 3),
        "at_page_end": at_page_end,
        "expected": expected,
        "result": Buffer(np.full(expected.size, -1, np.int32), at_page_end),
    }


def vector(buffer, kind):
    return calls.Argument((kind, *buffer), wrong_vectors(buffer, kind))


def check(problem, function, *scores):
    values, result, nnz = problem["values"], problem["result"], problem["pattern"].nnz
    address, count = calls.words(result)
    arguments = [
        *calls.words(problem["words"]),
        vector(values, problem["kinds"][0]),
        *scores,
        calls.Argument(problem["count"], (-1, nnz + 1, -(2**63), *calls.HUGE)),
        calls.Argument(problem["by_value"]),
        address,
        count,
        calls.threads(problem["threads"]),
    ]
    call = calls.Call(function, arguments, [result])
    calls.refuse_wrong_arguments(call, problem["generator"])
    call()
    np.testing.assert_array_equal(result.array, problem["expected"])
    assert result.is_intact()


@given(generators())
def test_dense_scores_update_a_pattern(generator):
    problem = draw_problem(generator)
    weight = as_weight(problem["scores"], problem["pattern"].mask.shape)
    scores = Buffer(stored(weight, problem["kinds"][1]), problem["at_page_end"])
    check(problem, _C.pattern.update_topology, vector(scores, problem["kinds"][1]))


@given(generators())
def test_listed_scores_update_a_pattern(generator):
    """All inactive positions are listed, in any order; then one is wrong."""
    problem = draw_problem(generator)
    pattern, kind = problem["pattern"], problem["kinds"][1]
    flat = problem["scores"].reshape(-1)
    listed = generator.permutation((~pattern.matrix).reshape(-1).nonzero()[0])
    active = pattern.rows * pattern.matrix.shape[1] + pattern.cols
    scores = Buffer(stored(flat[listed], kind), problem["at_page_end"])
    of_active = Buffer(stored(flat[active], kind), problem["at_page_end"])
    positions = Buffer(listed.astype(np.int64), problem["at_page_end"])
    # Fewer scores than there are positions are right, so no count of them is wrong.
    wrong = [value for value in wrong_vectors(scores, kind) if not value or value[1:2] != (scores.address,)]
    refused = (
        [value for value in wrong if value and value[1] == 0] if problem["count"] and len(listed) else []
    )
    address, _ = calls.data(positions)
    arguments = [
        calls.Argument((kind, *scores), (*refused, None)),
        vector(of_active, kind),
        calls.Argument(positions.address, address.wrong if len(listed) else calls.NO_INTEGER),
    ]
    check(problem, _C.pattern.update_topology_listed, *arguments)
    if len(listed) and problem["count"]:
        place = generator.integers(len(listed))
        outside = (-1, flat.size, 2**62, -(2**63), *active[:1])
        positions.array[place] = outside[generator.integers(len(outside))]
        call = (
            *problem["words"],
            (problem["kinds"][0], *problem["values"]),
            (kind, *scores),
            (kind, *of_active),
        )
        how = *call, positions.address, problem["count"], problem["by_value"], *problem["result"], 1
        _, refusal = calls.outcome(_C.pattern.update_topology_listed, *how)
        assert "positions: expected inactive ones below" in str(refusal)
