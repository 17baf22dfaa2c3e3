"""Numbers that every order of summation treats alike, in the types that the extension computes in.

Small integers: no sum of their products is rounded before the result is, so results are compared exactly.
"""

import numpy as np
from hypothesis import strategies as st

FLOAT32, FLOAT64, BFLOAT16 = 0, 1, 2
DTYPES = (FLOAT32, FLOAT64, BFLOAT16)


def round_to_bfloat16(values):
    """float32 as the bits of bfloat16, to the nearest and half to even; finite values only."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def stored(values, dtype):
    """Numbers as they are stored in `dtype`; no zero is negative."""
    numbers = np.asarray(values) + 0.0
    if dtype == BFLOAT16:
        return round_to_bfloat16(numbers)
    return numbers.astype(np.float64 if dtype == FLOAT64 else np.float32)


def generators():
    """Hypothesis draws a seed, and NumPy all of an example from it: examples differ in everything."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def pick(generator, choices):
    return choices[int(generator.integers(len(choices)))]


def integer(generator, least, most):
    return int(generator.integers(least, most + 1))


def small_integers(generator, *shape):
    """float64: -3 to 3."""
    return generator.integers(-3, 4, shape).astype(np.float64)


def untouched(count, dtype):
    """What a result holds before it is computed: NaN."""
    if dtype == BFLOAT16:
        return np.full(count, 0x7FC0, np.uint16)
    return np.full(count, np.nan, np.float64 if dtype == FLOAT64 else np.float32)


def assert_same(result, numbers, dtype):
    """The elements of a result are `numbers`, rounded to its type. Zeros may have either sign."""
    if dtype == BFLOAT16:
        result = np.where(result == 0x8000, 0, result)
    np.testing.assert_array_equal(result, stored(numbers, dtype).reshape(-1))
