"""`GradualPruning`: removes the weights of least magnitude, a few at a time, while the rest trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.formats.checks import (
    check_bool,
    check_integer,
    check_sparsity,
)
from sparsekern.formats.pattern import Pattern
from sparsekern.methods.arguments import check_arguments, unwrapped, unwrapped_optimizer
from sparsekern.methods.at_init.selection import check_scope, keep_largest
from sparsekern.methods.attached import AttachedMethod
from sparsekern.methods.compact import check_compactable, compact_layers
from sparsekern.methods.driven_layer import DrivenLayer, driven_layers
from sparsekern.methods.optimizer_state import check_states
from sparsekern.methods.schedules import cubic_sparsity
from sparsekern.methods.timetable import Timetable
from sparsekern.nn import SparseLayer
from sparsekern.nn.distributions import layer_counts
from sparsekern.nn.survey import excluded_names

__all__ = ["GradualPruning", "PruningUpdate"]


@dataclass(frozen=True)
class PruningUpdate:
    """What one update left.

    Attributes
    ----------
    step : int
        Optimizer steps taken so far.
    update : int
        Its number, from 1.
    active : mapping of str to int
        Active weights by layer.
    numel : int
        Positions of all layers.
    """

    step: int
    update: int
    active: Mapping[str, int]
    numel: int

    @property
    def sparsity(self) -> float:
        """The fraction of zeros over all layers."""
        return 1 - sum(self.active.values()) / self.numel


@dataclass(frozen=True)
class _Options:
    sparsity: float
    begin: int
    end: int
    update_every: int
    scope: str
    distribution: str


class GradualPruning(AttachedMethod):
    r"""Magnitude pruning along a cubic schedule; attached to the optimizer as soon as it is made.

    After the optimizer's steps `begin` (unless that is 0), ``begin + update_every``, ... and `end`, the
    weights of least magnitude are removed until each layer, or with a global scope all of them together, has
    the schedule's sparsity, exactly:

    .. math:: s(t) = s_f + (s_0 - s_f) \Big(1 - \frac{t - t_0}{t_1 - t_0}\Big)^3

    Removed weights are 0, have no gradient, keep nothing in the optimizer and never come back: they are not
    ranked again. Of equal magnitudes the lower index stays. After the last update the layers become compact:
    their weights, gradients and optimizer state shrink to nnz size (see `sparsekern.methods.compact_`), and
    this ends. A checkpoint from then on holds compact layers and nothing of this: resume it without, with a
    model from ``sparsify_(model, sparsity=0, init="keep")``, ``load_state_dict(state, assign=True)`` and an
    optimizer made after that. A masked model refuses it.

    Parameters
    ----------
    model : torch.nn.Module
        With sparse layers of ``storage="masked"``: ``sparsify_(model, sparsity=0, storage="masked",
        init="keep")`` makes them of a dense model. Their sparsity is :math:`s_0`.
    optimizer : torch.optim.Optimizer
        Trains their weights; steps that a GradScaler leaves out do not count.
    sparsity : float
        :math:`s_f`, the fraction of zeros over all layers in the end, in (0, 1).
    begin, end : int
        :math:`t_0 < t_1`: where the schedule begins and ends, in steps.
    update_every : int
        Steps between updates.
    scope : str
        ``"layer"``: every layer has a sparsity of its own by `distribution`; one with fewer weights than its
        share keeps them, and the others share the rest. ``"global"``: the weights of all layers compete;
        each keeps at least one.
    distribution : str
        ``"uniform"``, ``"er"`` or ``"erk"``, see `layer_sparsities`; for ``scope="layer"``.
    compact : bool
        False keeps the dense weights after the last update; with DDP this is needed.
    on_update : callable, optional
        Called with the `PruningUpdate` after each update.
    exclude : names or glob patterns
        Sparse layers to leave as they are.

    Attributes
    ----------
    steps, updates : int
        Steps taken, updates made.
    next_update : int or None
        Number of steps after which the next update comes.

    Raises
    ------
    TypeError, ValueError
        For arguments that are none of the above; layers that are compact, sparser already than they shall
        become, or moved by another method; a model in DDP or FSDP2 unless `compact` is False. At an update,
        FloatingPointError for weights that are not finite, before any layer is changed.

    References
    ----------
    Zhu and Gupta, *To prune, or not to prune* (2017).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        sparsity: float,
        begin: int,
        end: int,
        update_every: int = 100,
        scope: str = "layer",
        distribution: str = "uniform",
        compact: bool = True,
        on_update: Callable[[PruningUpdate], None] | None = None,
        exclude: Iterable[str] = (),
    ) -> None:
        optimizer = unwrapped_optimizer(optimizer)
        check_arguments(model, optimizer, on_update)
        self.options = _checked_options(sparsity, begin, end, update_every, scope, distribution)
        wrapped, model = model, unwrapped(model)
        self._compact = check_bool(compact, "compact")
        if compact and wrapped is not model:
            raise ValueError(
                f"compact must be False for a model inside of {type(wrapped).__name__}, which knows the "
                "Parameters of before, got True"
            )
        self.model = model
        self.optimizer = optimizer
        self.layers = driven_layers(model, optimizer, excluded_names(model, exclude))
        self._initial = {layer.name: layer.pattern.nnz for layer in self.layers}
        self._final = self._final_counts(self._initial)
        for layer in self.layers:
            _check_layer(layer, optimizer)
        if compact:
            check_compactable(model, {layer.name: layer.layer for layer in self.layers})
        self.updates = 0
        self._timetable = _Timetable(self.options)
        self._on_update = on_update
        self._attach(before=lambda *step: None, after=self._after_step)

    def layer_state(self, layer: DrivenLayer) -> dict[str, Any]:
        return {"shape": list(layer.pattern.shape), "initial": self._initial[layer.name]}

    def check_layer_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        for layer in self.layers:
            initial, numel = states[layer.name]["initial"], layer.pattern.numel
            if not 0 <= initial <= numel:
                raise ValueError(
                    f"state of layer {layer.name!r} must have initial from 0 to {numel:,}, got {initial:,}"
                )
        self._final_counts({name: state["initial"] for name, state in states.items()})

    def _load_layers(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        self._initial = {layer.name: states[layer.name]["initial"] for layer in self.layers}
        self._final = self._final_counts(self._initial)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._timetable.add_call(optimizer)
        if not self._timetable.is_due():
            return
        self._check_layers()
        update = self._update()
        try:
            if self._on_update is not None:
                self._on_update(update)
        finally:
            if self.next_update is None and self._compact and self._attachment.is_active:
                self.detach()
                self._make_compact()

    def _make_compact(self) -> None:
        weights = {id(layer.parameter) for layer in self.layers}
        shared = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, SparseLayer) and id(module.stored_weight) in weights
        }
        compact_layers(shared, self.optimizer)
        for layer in self.layers:
            layer.take_parameter()

    def _update(self) -> PruningUpdate:
        targets = self._targets()
        for layer in self.layers:
            layer.move(targets[layer.name], self.optimizer)
        self.updates += 1
        self._timetable.advance()
        active = {layer.name: layer.pattern.nnz for layer in self.layers}
        numel = sum(layer.pattern.numel for layer in self.layers)
        return PruningUpdate(self.steps, self.updates, active, numel)

    def _targets(self) -> dict[str, Pattern]:
        """The patterns of this update; found for all layers before any is changed."""
        step, begin, end = self.steps, self.options.begin, self.options.end
        magnitudes = {layer.name: _magnitude(layer) for layer in self.layers}
        masks = {layer.name: layer.pattern.to_mask() for layer in self.layers}
        kept: dict[str, Tensor] = {}
        for names, initial, final in self._shares():
            # The schedule's sparsity is linear in its ends, so that counts follow it as well.
            count = round(cubic_sparsity(initial, final, step, begin, end))
            count = min(count, sum(int(masks[name].sum()) for name in names))
            kept |= keep_largest({n: magnitudes[n] for n in names}, {n: masks[n] for n in names}, count)[0]
        return {name: Pattern.from_mask(mask) for name, mask in kept.items()}

    def _shares(self) -> list[tuple[list[str], int, int]]:
        """Layers whose weights compete, and how many weights they have in the beginning and in the end."""
        initial, final = self._initial, self._final
        if self.options.scope == "global":
            return [(list(initial), sum(initial.values()), sum(final.values()))]
        return [([name], initial[name], final[name]) for name in initial]

    def _final_counts(self, initial: Mapping[str, int]) -> dict[str, int]:
        """Active weights of each layer in the end; with a global scope only their sum counts."""
        shapes = [tuple(layer.pattern.shape) for layer in self.layers]
        limits = [initial[layer.name] for layer in self.layers]
        counts = layer_counts(shapes, self.options.sparsity, self.options.distribution, limits)
        return {layer.name: count for layer, count in zip(self.layers, counts)}


class _Timetable(Timetable):
    """Updates after `begin`, every so many steps from there on, and at `end`; none before the first step."""

    def __init__(self, options: _Options) -> None:
        self._begin, self._end = options.begin, options.end
        super().__init__(options.update_every, options.end + 1)

    def _update_after(self, step: int) -> int | None:
        if step < self._begin:
            return self._begin
        if step >= self._end:
            return None
        return min(self._begin + ((step - self._begin) // self._every + 1) * self._every, self._end)


def _checked_options(
    sparsity: Any, begin: Any, end: Any, update_every: Any, scope: Any, distribution: Any
) -> _Options:
    final = check_sparsity(sparsity)
    if not final:
        raise ValueError("sparsity must be above 0, got 0")
    begin, end = check_integer(begin, "begin", 0), check_integer(end, "end")
    if begin >= end:
        raise ValueError(f"end must be above begin, {begin}, got {end}")
    every = check_integer(update_every, "update_every")
    check_scope(scope, distribution)
    return _Options(final, int(begin), int(end), int(every), scope, distribution)


def _check_layer(layer: DrivenLayer, optimizer: torch.optim.Optimizer) -> None:
    if layer.layer.storage != "masked":
        raise ValueError(
            f"model must have masked weights to prune, from sparsify_(storage='masked'), got layer "
            f"{layer.name!r} with storage={layer.layer.storage!r}"
        )
    check_states(optimizer, layer.parameter, layer.name)


@torch.no_grad()
def _magnitude(layer: DrivenLayer) -> Tensor:
    """The dense weight's, 0 where it has been pruned."""
    magnitude = ops.unpack(layer.values().abs(), layer.pattern)
    if not magnitude.isfinite().all():
        raise FloatingPointError(f"the weight of layer {layer.name!r} is not finite: it cannot be pruned")
    return magnitude
