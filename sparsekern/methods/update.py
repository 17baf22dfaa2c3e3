"""`Update`: one update of all layers, decided as a whole before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern import ops
from sparsekern.formats.pattern import Pattern
from sparsekern.methods.blocks import update_blocks
from sparsekern.methods.contributions import Scores, all_finite, score_parts
from sparsekern.methods.driven_layer import DrivenLayer
from sparsekern.methods.growth import Growth, NotFiniteError
from sparsekern.methods.options import Options
from sparsekern.methods.ranks import Ranks
from sparsekern.methods.statistics import LayerUpdate
from sparsekern.ops import Candidates
from sparsekern.seeds import generator

__all__ = ["Update"]


@dataclass(frozen=True)
class Update:
    """What an update works on.

    Attributes
    ----------
    number : int
        From 1.
    layers : sequence of DrivenLayer
    options : Options
    ranks : Ranks
    fractions, counts : mapping of str to float, int
        By layer name: the drop fraction, and the positions to exchange.
    at_active : mapping of str to Tensor
        See `Growth`; empty unless the gradient is that of a holdout batch.
    """

    number: int
    layers: Sequence[DrivenLayer]
    options: Options
    ranks: Ranks
    fractions: Mapping[str, float]
    counts: Mapping[str, int]
    at_active: Mapping[str, Tensor]

    @torch.no_grad()
    def targets(self, scores: Callable[[Growth], Scores | None]) -> dict[str, Pattern]:
        """The new pattern of each layer that has one. Layers whose scores are few positions go through one
        call; the others come one at a time, so that no more than one dense score is held.

        Raises
        ------
        NotFiniteError
            When a score is infinite or NaN.
        """
        together: list[tuple[DrivenLayer, Candidates]] = []
        targets = {}
        for index, layer in enumerate(self.layers):
            if not self.counts[layer.name]:
                continue
            draws = generator(self.options.seed, f"update {self.number}", index)
            count, at_active = self.counts[layer.name], self.at_active.get(layer.name)
            found = scores(Growth(layer, count, self.ranks, draws, at_active))
            if found is None:
                continue
            _check_finite(layer, found)
            if isinstance(found, Candidates) and not layer.is_sharded:
                together.append((layer, found))
            else:
                targets[layer.name] = self._target(layer, found)
        patterns = self._exchange(together)
        return {**targets, **{layer.name: pattern for (layer, _), pattern in zip(together, patterns)}}

    def apply(
        self, targets: Mapping[str, Pattern], optimizer: torch.optim.Optimizer
    ) -> dict[str, LayerUpdate]:
        """Move all layers to their new patterns, and say what changed."""
        changes = {}
        for index, layer in enumerate(self.layers):
            target, nnz = targets.get(layer.name), layer.pattern.nnz
            new: Tensor | int = 0
            if target is not None:
                kept = layer.move(target, optimizer)
                new = nnz - kept.count_nonzero()
                if self.options.new_values == "per_neuron":
                    layer.draw_new(kept, generator(self.options.seed, f"values {self.number}", index))
                layer.explored.add(layer.pattern)
            changes[layer.name] = LayerUpdate(
                drop_fraction=self.fractions[layer.name],
                dropped=0 if target is None else self.counts[layer.name],
                nnz=nnz,
                numel=layer.pattern.numel,
                _new=new,
                _explored=layer.explored.count(),
            )
        return changes

    def _target(self, layer: DrivenLayer, scores: Scores) -> Pattern:
        if layer.block_size is None:
            return self._exchange([(layer, scores)])[0]
        return update_blocks(
            layer.values(),
            layer.pattern,
            scores,
            self.fractions[layer.name],
            block_size=layer.block_size,
            by="value",
            regrow=self.options.regrow_dropped,
        )

    def _exchange(self, entries: Sequence[tuple[DrivenLayer, Scores]]) -> list[Pattern]:
        layers = [layer for layer, _ in entries]
        return ops.update_topology(
            [layer.values() for layer in layers],
            [layer.pattern for layer in layers],
            [self._allowed(layer, scores) for layer, scores in entries],
            [self.counts[layer.name] for layer in layers],
            by="value",
        )

    def _allowed(self, layer: DrivenLayer, scores: Scores) -> Scores:
        """The scores, with the active positions below all others where none of them may come back."""
        if self.options.regrow_dropped:
            return scores
        if isinstance(scores, Candidates):
            return scores._replace(active=torch.full_like(scores.active, -torch.inf))
        return scores.masked_fill(layer.pattern.to_mask(), -torch.inf)


def _check_finite(layer: DrivenLayer, scores: Scores) -> None:
    if not all(map(all_finite, score_parts(scores))):
        raise NotFiniteError(layer.name)
