"""Checks of arguments: one clear error each, raised before anything changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from sparsekern.formats.checks import check_sparsity
from sparsekern.formats.pattern import Pattern

STORAGES = ("compact", "masked")


def describe(value: Any) -> str:
    """What came, short enough for an error message."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def check_choice(value: Any, choices: Sequence[str], name: str) -> str:
    if not isinstance(value, str) or value not in choices:
        expected = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return value


def check_positive_int(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive int, got {describe(value)}")
    return value


def check_pair(value: Any, name: str, minimum: int) -> tuple[int, int]:
    """An int or a pair of ints, each at least `minimum`, as a pair."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    integers = all(isinstance(v, int) and not isinstance(v, bool) for v in pair)
    if len(pair) != 2 or not integers or min(pair) < minimum:
        raise ValueError(
            f"{name}: expected an int or a pair of ints, each at least {minimum}, got {describe(value)}"
        )
    return pair


def check_mask(mask: Any, shape: tuple[int, ...], name: str = "mask") -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected a torch.bool tensor of shape {shape}, got {describe(mask)}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, the weight's, got {tuple(mask.shape)}")
    return mask


def check_pattern(pattern: Any, shape: tuple[int, ...], name: str = "pattern") -> Pattern:
    if not isinstance(pattern, Pattern):
        raise TypeError(f"{name}: expected a sparsekern.Pattern of shape {shape}, got {describe(pattern)}")
    if tuple(pattern.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, the weight's, got {tuple(pattern.shape)}")
    return pattern


def as_pattern(mask: Any, shape: tuple[int, ...], name: str = "mask") -> Pattern:
    """A mask or a ready pattern, checked against the weight's shape, as a pattern."""
    if isinstance(mask, Pattern):
        return check_pattern(mask, shape, name)
    return Pattern.from_mask(check_mask(mask, shape, name))


def choose_pattern(
    shape: tuple[int, ...],
    sparsity: float | None,
    mask: Tensor | None,
    pattern: Pattern | None,
    generator: torch.Generator | None,
) -> Pattern:
    """The pattern a layer is asked for: exactly one of `sparsity` (random), `mask` and `pattern`."""
    given = {"sparsity": sparsity, "mask": mask, "pattern": pattern}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        came = " and ".join(names) if names else "none of them"
        raise ValueError(f"expected exactly one of sparsity, mask and pattern, got {came}")
    if pattern is not None:
        return check_pattern(pattern, shape)
    if mask is not None:
        return Pattern.from_mask(check_mask(mask, shape))
    return Pattern.random(shape, check_sparsity(sparsity), generator=generator)


def near_names(name: str, names: Iterable[str]) -> str:
    """A hint such as "; did you mean 'fc1' or 'fc2'?", or nothing when no name is near."""
    near = get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
