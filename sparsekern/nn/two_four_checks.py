"""Checks of what 2:4 layers are made with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sparsekern.formats.checks import check_bool, check_choice, check_integer, describe, is_number
from sparsekern.formats.two_four import GROUP

METHODS = ("sr_ste", "ste", "fixed")
DECAY = 2e-4


def check_options(
    method: Any = "sr_ste",
    transposable: Any = False,
    refresh_every: Any = 1,
    decay: Any = DECAY,
    dense_below: Any = 0,
) -> dict[str, Any]:
    """The options of a `TwoFourLayer`, checked; without SR-STE, the decay is 0."""
    check_choice(method, METHODS, "method")
    check_bool(transposable, "transposable")
    refresh_every = check_integer(refresh_every, "refresh_every")
    if method == "fixed" and refresh_every != 1:
        raise ValueError(
            f"refresh_every must be left out for method='fixed', whose mask stays, got {refresh_every}"
        )
    if not is_number(decay):
        raise TypeError(f"decay must be a finite number of at least 0, got {describe(decay)}")
    if not 0 <= decay < math.inf:
        raise ValueError(f"decay must be a finite number of at least 0, got {decay}")
    if method != "sr_ste" and decay not in (0, DECAY):
        raise ValueError(f"decay must be left out unless method='sr_ste', got {decay} and {method!r}")
    return {
        "method": method,
        "transposable": transposable,
        "refresh_every": refresh_every,
        "decay": float(decay) if method == "sr_ste" else 0.0,
        "dense_below": check_integer(dense_below, "dense_below", 0),
    }


def misfit(sizes: Mapping[str, int]) -> str | None:
    """What keeps a weight from being 2:4: the first of the named sizes that is no multiple of 4."""
    for name, size in sizes.items():
        if size % GROUP:
            below = size // GROUP * GROUP
            near = f"{below} and {below + GROUP}" if below else f"{GROUP}"
            return f"{name} must be a multiple of {GROUP}, got {size}; the nearest: {near}"
    return None
