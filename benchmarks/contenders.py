"""A way of doing a problem's work: a function to time, and how to read its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# The two that every ratio is made of; they have to run everywhere, the others may be missing.
DENSE = "dense"
SPARSE = "sparsekern"


def _as_it_is(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@dataclass(frozen=True)
class Contender:
    """One row of a comparison.

    Attributes
    ----------
    name : str
    run : callable
        The timed call.
    dense : callable
        Makes the result of `run` comparable with `Problem.answers`; not timed.
    """

    name: str
    run: Callable[[], Any]
    dense: Callable[[Any], tuple[Tensor, ...]] = _as_it_is
