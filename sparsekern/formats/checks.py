"""Checks of the arguments that every part of the package takes.

A wrong type is a TypeError and a wrong value a ValueError, each "NAME must be ..., got ...". Integers and
numbers may be NumPy's; ``bool`` is neither, since ``sparsity=True`` is a slip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "active_count",
    "check_bool",
    "check_choice",
    "check_generator",
    "check_integer",
    "check_mask",
    "check_positions",
    "check_positive",
    "check_shape",
    "check_sparsity",
    "check_strided",
    "describe",
    "is_integer",
    "is_number",
]

MAX_DIMENSION = 2**31 - 1


def describe(value: object) -> str:
    """What came, short enough for an error message."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def is_integer(value: object) -> bool:
    """An integer of Python or NumPy, and no ``bool``."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A real number of Python or NumPy, and no ``bool``."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_integer(value: Any, name: str, minimum: int = 1) -> int:
    """Return `value` as an int when it is an integer of at least `minimum`."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer, got {describe(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def check_positive(value: Any, name: str) -> float:
    """Return `value` as a float when it is a finite number above 0."""
    if not is_number(value):
        raise TypeError(f"{name} must be a positive finite number, got {describe(value)}")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a positive finite number, got {value}")
    return float(value)


def check_choice(value: Any, choices: Sequence[str], name: str) -> str:
    """Return `value` when it is one of the words in `choices`."""
    rule = f"{name} must be {' or '.join(repr(choice) for choice in choices)}"
    if not isinstance(value, str):
        raise TypeError(f"{rule}, got {describe(value)}")
    if value not in choices:
        raise ValueError(f"{rule}, got {value!r}")
    return value


def check_bool(value: Any, name: str) -> bool:
    """Return `value` when it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
    return value


def check_generator(generator: Any) -> torch.Generator | None:
    """Return `generator` when it is a torch.Generator or None; TypeError otherwise."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {describe(generator)}")
    return generator


def check_strided(tensor: Tensor, name: str) -> Tensor:
    """Return `tensor` when its elements lie in memory one by one: no sparse layout, no meta device."""
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a tensor of layout torch.strided, got {tensor.layout}")
    if tensor.is_meta:
        raise ValueError(f"{name} must be a tensor with contents, got one on the meta device")
    return tensor


def check_mask(mask: Any, name: str = "mask", shape: tuple[int, ...] | None = None) -> Tensor:
    """Return `mask` when it is a bool tensor that can be read, and of the weight's `shape` if given."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a tensor of dtype torch.bool, got {describe(mask)}")
    if shape is not None and tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have the weight's shape {shape}, got {tuple(mask.shape)}")
    return check_strided(mask, name)


def check_positions(positions: Any, numel: int, device: torch.device) -> Tensor:
    """Return `positions` when it is an int64 tensor on `device` of indices below `numel`."""
    if not isinstance(positions, Tensor) or positions.dtype != torch.int64:
        raise TypeError(f"positions must be an int64 tensor, got {describe(positions)}")
    check_strided(positions, "positions")
    if positions.device != device:
        raise ValueError(f"positions must be on the pattern's device {device}, got {positions.device}")
    if positions.numel():
        least, largest = (int(end) for end in positions.aminmax())
        if least < 0 or largest >= numel:
            raise ValueError(
                f"positions must be at least 0 and below the {numel} positions of the weight, "
                f"got {least if least < 0 else largest}"
            )
    return positions


def check_sparsity(value: float, name: str = "sparsity") -> float:
    """Return `value` as a float when it is a sparsity: a fraction of zeros in [0, 1).

    Parameters
    ----------
    value : float
        Any real number, and no ``bool``.
    name : str
        What the argument is called in the error.

    Raises
    ------
    TypeError
        When `value` is not a real number.
    ValueError
        When `value` is NaN or outside [0, 1).
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number in [0, 1), got {describe(value)}")
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
        if not is_integer(size):
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
