"""The largest of many scores that are never stored together, found in a few passes over them.

Scores are magnitudes of a gradient that a backend computes anew in each pass. The bits of a magnitude, read
as an integer, order as the magnitudes do; this is its *key*, and NaN has one above all others. Digit by digit
from the top, a histogram says where the smallest key of the largest scores lies, until few enough lie beside
it to be written down and selected from.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Passes", "largest"]

DIGIT_BITS = 16
# Scores beyond those asked for that may be written down, where more are asked for as many again.
SURPLUS = 65536
KEY_TYPES = {torch.float32: torch.int32, torch.float64: torch.int64}


class Passes(Protocol):
    """Passes over the scores of the inactive positions; every pass sees the same bits.

    Attributes
    ----------
    device : torch.device
    dtype : torch.dtype
        Of the scores: float32 or float64.
    shape : tuple of int
        Rows and columns of the matrix that the scores are of.
    """

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, int]

    def count(self, prefix: int, shift: int, bits: int) -> Tensor:
        """int64 ``(2 ** bits,)`` on the host: how many of the keys with ``key >> (shift + bits) == prefix``
        have each digit ``(key >> shift) & (2 ** bits - 1)``."""

    def count_ties(self, key: int) -> Tensor:
        """int64 ``(rows,)`` on the host: how many scores of each row have this key."""

    def emit(self, least: int, tied_rows: int, positions: Tensor, scores: Tensor) -> int:
        """Write the scores whose key is above `least`, or equal to it in the first `tied_rows` rows, in any
        order, and their flat positions. Returns how many there are, if that was not known beforehand."""


def largest(passes: Passes, inactive: int, count: int) -> tuple[Tensor, Tensor]:
    """Positions and scores of the `count` largest; ties go to the first positions, and NaN is largest.

    Parameters
    ----------
    passes : Passes
    inactive : int
        Number of scores.
    count : int
        At most `inactive`.

    Returns
    -------
    positions : Tensor
        int64 ``(count,)``, ascending.
    scores : Tensor
        ``(count,)``.

    Raises
    ------
    ValueError
        When `count` is negative or above `inactive`.
    RuntimeError
        When two passes disagree, because somebody wrote to the inputs meanwhile.
    """
    if not 0 <= count <= inactive:
        raise ValueError(
            f"count must be at least 0 and at most the {inactive} inactive positions, got {count}"
        )
    if count == 0:
        return _empty(passes, 0)
    least, above, tied = _threshold(passes, inactive, count)
    tied_rows, _ = passes.shape
    if above + tied - count > _surplus(count):
        row_ends = passes.count_ties(least).cumsum(0)
        tied_rows = int(torch.searchsorted(row_ends, count - above)) + 1
        tied = int(row_ends[min(tied_rows, len(row_ends)) - 1])
    positions, scores = _empty(passes, above + tied)
    found = passes.emit(least, tied_rows, positions, scores)
    if found != above + tied:
        raise RuntimeError(
            f"the inputs changed while they were read: {found} scores above a threshold that {above + tied} "
            f"were above"
        )
    return _select(positions, scores, count)


def _surplus(count: int) -> int:
    return max(count, SURPLUS)


def _empty(passes: Passes, count: int) -> tuple[Tensor, Tensor]:
    positions = torch.empty(count, dtype=torch.int64, device=passes.device)
    return positions, torch.empty(count, dtype=passes.dtype, device=passes.device)


def _threshold(passes: Passes, inactive: int, count: int) -> tuple[int, int, int]:
    """(least, above, tied): `above` keys exceed a range that holds the smallest key wanted and `tied` keys
    in all, and that begins with `least`; if more than a surplus are left, it is `least` alone."""
    shift = 8 * passes.dtype.itemsize - 1
    prefix, above, tied = 0, 0, inactive
    while above + tied - count > _surplus(count) and shift > 0:
        bits = min(DIGIT_BITS, shift)
        shift -= bits
        from_top = passes.count(prefix, shift, bits).flip(0).cumsum(0)
        place = min(int(torch.searchsorted(from_top, count - above)), len(from_top) - 1)
        before = int(from_top[place - 1]) if place else 0
        tied = int(from_top[place]) - before
        above += before
        prefix = prefix << bits | len(from_top) - 1 - place
    return prefix << shift, above, tied


def _select(positions: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of the scores, in the order of their positions."""
    positions, order = positions.sort()
    scores = scores[order]
    if len(scores) == count:
        return positions, scores
    keys = scores.view(KEY_TYPES[scores.dtype])
    least = keys.kthvalue(len(keys) - count + 1).values
    chosen = keys > least
    ties = (keys == least).nonzero().squeeze(1)
    chosen[ties[: count - int(chosen.sum())]] = True
    return positions[chosen], scores[chosen]
