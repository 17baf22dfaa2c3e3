"""The passes over a dense gradient that find where a pattern should grow, against the gradient itself."""

import numpy as np

from tests.csrc import calls
from tests.csrc.memory import Buffer
from tests.csrc.numerics import FLOAT64


def check_passes(passes, gradient, problem):
    """All passes of a `GrowCandidates` see the exact gradient, a matrix, at the inactive positions.

    Parameters
    ----------
    passes : _C.GrowCandidates
    gradient : ndarray
        float64: rows, columns.
    problem : dict
        With the generator, the pattern, the dtype and where buffers are.
    """
    wide = problem["dtype"] == FLOAT64
    scores = np.abs(gradient).astype(np.float64 if wide else np.float32)
    keys = scores.view(np.int64 if wide else np.int32).astype(np.int64)
    inactive = ~problem["pattern"].matrix
    check_digits(passes, keys[inactive], problem, 63 if wide else 31)
    least = int(problem["generator"].choice(keys.reshape(-1)))
    check_ties(passes, (keys == least) & inactive, least, problem)
    tied_rows = int(problem["generator"].integers(len(keys) + 1))
    chosen = keys > least
    chosen[:tied_rows] |= keys[:tied_rows] == least
    check_emitted(passes, scores, chosen & inactive, (least, tied_rows), problem)


def buffer(problem, count, dtype):
    return Buffer(np.full(count, -1, dtype), problem["at_page_end"])


def refuse_and_run(passes, name, arguments, outputs, problem):
    call = calls.Call(getattr(passes, name), arguments, outputs)
    calls.refuse_wrong_arguments(call, problem["generator"], tries=4)
    returned = call()
    assert all(output.is_intact() for output in outputs)
    return returned


def check_digits(passes, keys, problem, key_bits):
    generator = problem["generator"]
    bits = int(generator.integers(1, 17))
    shift = int(generator.integers(key_bits - bits + 1))
    prefixes = np.append(keys >> (shift + bits), 0)
    prefix = int(generator.choice(prefixes))
    most = (2**key_bits - 1) >> (shift + bits)
    counts = buffer(problem, 2**bits, np.int64)
    arguments = [
        calls.Argument(prefix, (-1, most + 1, -(2**63), 2**63 - 1 if most < 2**63 - 1 else -1)),
        calls.Argument(shift, (-1, key_bits - bits + 1, 2**31 - 1, -(2**31), 2**31)),
        calls.Argument(bits, (0, -1, 17, 2**31 - 1, -(2**31), 2**31)),
        *calls.data(counts),
    ]
    refuse_and_run(passes, "count", arguments, [counts], problem)
    digits = (keys >> shift & 2**bits - 1)[keys >> (shift + bits) == prefix]
    np.testing.assert_array_equal(counts.array, np.bincount(digits, minlength=2**bits))


def check_ties(passes, tied, key, problem):
    ties = buffer(problem, len(tied), np.int64)
    arguments = [calls.Argument(key, (-1, -(2**63), *calls.NO_INTEGER)), *calls.data(ties)]
    refuse_and_run(passes, "count_ties", arguments, [ties], problem)
    np.testing.assert_array_equal(ties.array, tied.sum(1))


def check_emitted(passes, scores, chosen, threshold, problem):
    found = int(chosen.sum())
    # Room for exactly as many as there are; and too little, where none may be written beyond it.
    for room in {found, max(found - 1, 0)}:
        positions, values = buffer(problem, room, np.int64), buffer(problem, room, scores.dtype)
        least, tied_rows = threshold
        arguments = [
            calls.Argument(least, (-1, -(2**63), *calls.NO_INTEGER)),
            calls.Argument(tied_rows, calls.NO_INTEGER),
            *calls.data(positions),
            *calls.data(values),
        ]
        assert refuse_and_run(passes, "emit", arguments, [positions, values], problem) == found
    positions, values = buffer(problem, found, np.int64), buffer(problem, found, scores.dtype)
    passes.emit(*threshold, *positions, *values)
    order = positions.array.argsort()
    np.testing.assert_array_equal(positions.array[order], chosen.reshape(-1).nonzero()[0])
    np.testing.assert_array_equal(values.array[order], scores[chosen])
