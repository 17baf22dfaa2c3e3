"""What an update did, and which positions have been active so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsekern.formats.known import index_of
from sparsekern.formats.pattern import Pattern

__all__ = ["Explored", "LayerUpdate", "UpdateStatistics"]


BAND = 1 << 18


@dataclass(frozen=True)
class LayerUpdate:
    """One layer's part of an update.

    Attributes
    ----------
    drop_fraction : float
        The schedule's, for this layer.
    dropped : int
        Positions taken out of the pattern, and as many grown; those that came back at once are in both.
    nnz, numel : int
        Active positions, before and after; all positions.
    """

    drop_fraction: float
    dropped: int
    nnz: int
    numel: int
    # On the layer's device: read only when somebody asks.
    _new: Tensor | int = field(repr=False)
    _explored: Tensor | int = field(repr=False)

    @property
    def grown(self) -> int:
        """Positions that are active now and were not before."""
        return int(self._new)

    @property
    def regrown(self) -> int:
        """Positions that were dropped and came back at once."""
        return self.dropped - self.grown

    @property
    def explored(self) -> int:
        """Positions that have ever been active."""
        return int(self._explored)


@dataclass(frozen=True)
class UpdateStatistics:
    """One update of all layers.

    Attributes
    ----------
    step : int
        Optimizer steps taken so far.
    update : int
        Its number, from 1.
    layers : mapping of str to LayerUpdate
    """

    step: int
    update: int
    layers: Mapping[str, LayerUpdate]

    @property
    def drop_fraction(self) -> float:
        """The schedule's; the largest, where layers of other parameter groups have others."""
        return max((layer.drop_fraction for layer in self.layers.values()), default=0.0)

    @property
    def dropped(self) -> int:
        """Positions taken out of all patterns; see `LayerUpdate`."""
        return sum(layer.dropped for layer in self.layers.values())

    @property
    def grown(self) -> int:
        """Positions that are active now and were not before."""
        return sum(layer.grown for layer in self.layers.values())

    @property
    def regrown(self) -> int:
        """Positions that were dropped and came back at once."""
        return self.dropped - self.grown

    @property
    def exploration_rate(self) -> float:
        """Positions that have ever been active over all positions (Liu et al., *Do We Actually Need Dense
        Over-Parameterization?*, 2021: in-time over-parameterization)."""
        explored = sum(layer.explored for layer in self.layers.values())
        return explored / max(sum(layer.numel for layer in self.layers.values()), 1)

    def __str__(self) -> str:
        return (
            f"update {self.update} after step {self.step:,}: {self.dropped:,} dropped, {self.grown:,} grown "
            f"anew, {self.regrown:,} came back; {self.exploration_rate:.1%} explored"
        )


class Explored:
    """One bit for each position of a weight: whether it has ever been active.

    Parameters
    ----------
    pattern : Pattern
        The first one.
    """

    def __init__(self, pattern: Pattern) -> None:
        self.words = _bits_of_grid(pattern).clone()

    def add(self, pattern: Pattern) -> None:
        """Note the positions of another pattern of the same weight."""
        self.words |= _bits_of_grid(pattern)

    def count(self) -> Tensor:
        """int64, without waiting for the device: how many positions have ever been active."""
        # In bands, since the counts of all words would be several times their size.
        return torch.stack([_population(band).sum() for band in self.words.view(-1).split(BAND)]).sum()


def _bits_of_grid(pattern: Pattern) -> Tensor:
    """int32 words: the bits of all tiles of the grid, row by row, also of those that are not stored."""
    index = index_of(pattern.data)
    width = pattern.tile_size**2 // 32
    words = pattern.bits.reshape(-1).view(torch.int32).view(pattern.num_tiles, width)
    if index.complete:
        return words
    layout = index.layout
    grid = words.new_zeros(layout.tile_rows * layout.tile_cols, width)
    grid[index.tile_row.long() * layout.tile_cols + index.tile_col.long()] = words
    return grid


def _population(words: Tensor) -> Tensor:
    """Ones in each word, by adding neighbouring fields of 1, 2, 4, 8 and 16 bits."""
    # Each mask also takes away the copies of the sign bit that a shift brings in.
    words = (words & 0x55555555) + ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    words = (words & 0x0F0F0F0F) + ((words >> 4) & 0x0F0F0F0F)
    words = (words & 0x00FF00FF) + ((words >> 8) & 0x00FF00FF)
    return ((words & 0x0000FFFF) + ((words >> 16) & 0x0000FFFF)).long()
