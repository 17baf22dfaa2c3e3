"""Checks of arguments: one clear error each, raised before anything changes."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import (
    check_generator,
    check_integer,
    check_mask,
    check_sparsity,
    describe,
    is_integer,
)
from sparsekern.formats.pattern import Pattern

STORAGES = ("compact", "masked")


def check_pair(value: Any, name: str, minimum: int) -> tuple[int, int]:
    """An integer or a pair of integers, each at least `minimum`, as a pair of ints."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(is_integer(size) for size in pair):
        raise TypeError(f"{name} must be an integer or a pair of integers, got {describe(value)}")
    first, second = (check_integer(size, name, minimum) for size in pair)
    return first, second


def check_dtype(dtype: Any) -> torch.dtype:
    """A layer's dtype, the default one for None."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    return dtype


def check_pattern(pattern: Any, shape: tuple[int, ...], name: str = "pattern") -> Pattern:
    if not isinstance(pattern, Pattern):
        raise TypeError(f"{name} must be a sparsekern.Pattern, got {describe(pattern)}")
    if pattern.shape != shape:
        raise ValueError(f"{name} must have the weight's shape {shape}, got {pattern.shape}")
    return pattern


def as_pattern(mask: Any, shape: tuple[int, ...], name: str = "mask") -> Pattern:
    """A mask or a ready pattern, checked against the weight's shape, as a pattern."""
    if isinstance(mask, Pattern):
        return check_pattern(mask, shape, name)
    return Pattern.from_mask(check_mask(mask, name, shape))


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
        raise ValueError(f"exactly one of sparsity, mask and pattern must be given, got {came}")
    check_generator(generator)
    if pattern is not None:
        return check_pattern(pattern, shape)
    if mask is not None:
        return Pattern.from_mask(check_mask(mask, shape=shape))
    return Pattern.random(shape, check_sparsity(sparsity), generator=generator)


def check_unwrapped(model: nn.Module) -> None:
    """Raise for a model in DDP, whose Parameters must stay the ones that they are."""
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise ValueError(
            "model must not be wrapped in DistributedDataParallel, which holds the Parameters to be replaced;"
            " convert it before"
        )


def near_names(name: str, names: Iterable[str]) -> str:
    """A hint such as "; did you mean 'fc1' or 'fc2'?", or nothing when no name is near."""
    near = get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
