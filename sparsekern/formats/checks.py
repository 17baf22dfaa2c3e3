"""Checks of the arguments that every part of the package takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

__all__ = ["active_count", "check_shape", "check_sparsity"]

MAX_DIMENSION = 2**31 - 1


def check_sparsity(value: float, name: str = "sparsity") -> float:
    """Return `value` as a float when it is a sparsity: a fraction of zeros in [0, 1).

    Parameters
    ----------
    value : float
        Any real number; ``bool`` is refused, since ``sparsity=True`` is a slip.
    name : str
        What the argument is called in the error.

    Raises
    ------
    TypeError
        When `value` is not a real number.
    ValueError
        When `value` is NaN or outside [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in [0, 1), got {value!r} of type {type(value).__name__}")
    if math.isnan(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1) (the fraction of zeros), got {value!r}")
    return float(value)


def active_count(sparsity: float, numel: int) -> int:
    """Active positions at a sparsity: ``max(1, round((1 - sparsity) * numel))``."""
    return max(1, round((1.0 - check_sparsity(sparsity)) * numel))


def check_shape(shape: Sequence[int], name: str = "shape") -> tuple[int, ...]:
    """Return `shape` as a tuple of ints when it is a weight's shape.

    Parameters
    ----------
    shape : sequence of int
        ``(out, in)`` or ``(out_channels, in_channels / groups, kh, kw)``.
    name : str
        What the argument is called in the error.

    Raises
    ------
    TypeError
        When `shape` is not a sequence of integers.
    ValueError
        When it has neither 2 nor 4 dimensions, one is smaller than 1, or the matrix is too large.
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"{name} must be a sequence of 2 or 4 integers, got {shape!r}")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise TypeError(f"{name} must be a sequence of 2 or 4 integers, got {shape!r}")
    sizes = tuple(int(size) for size in shape)
    if len(sizes) not in (2, 4):
        raise ValueError(
            f"{name} must be (out, in) or (out_channels, in_channels / groups, kh, kw), got {sizes}"
        )
    if min(sizes) < 1:
        raise ValueError(f"{name} must have only dimensions of at least 1, got {sizes}")
    if sizes[0] > MAX_DIMENSION or math.prod(sizes[1:]) > MAX_DIMENSION:
        raise ValueError(f"{name} must give a matrix of at most 2**31 - 1 rows and columns, got {sizes}")
    return sizes
