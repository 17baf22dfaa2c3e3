"""`DynamicMethod`: moves the patterns of a model's sparse layers between the steps of its optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsekern.formats.pattern import Pattern
from sparsekern.methods.arguments import check_arguments, check_model, unwrapped, unwrapped_optimizer
from sparsekern.methods.attached import AttachedMethod
from sparsekern.methods.contributions import Scores, Selected, is_finite, keep_candidates, keep_factors
from sparsekern.methods.driven_layer import DrivenLayer, driven_layers
from sparsekern.methods.growth import Growth, NotFiniteError, dense_total
from sparsekern.methods.holdout import watch_holdout
from sparsekern.methods.optimizer_state import check_states
from sparsekern.methods.options import Options
from sparsekern.methods.ranks import Ranks
from sparsekern.methods.schedules import drop_fraction
from sparsekern.methods.statistics import UpdateStatistics
from sparsekern.methods.timetable import Timetable, left_out
from sparsekern.methods.update import Update
from sparsekern.methods.withheld import Withheld
from sparsekern.nn.batch_norm import keeping_running_statistics
from sparsekern.nn.survey import excluded_names

__all__ = ["DynamicMethod"]


class DynamicMethod(AttachedMethod):
    """Base of the methods that move a model's patterns as it trains; attached as soon as it is made.

    After every `update_every`-th step of the optimizer, in each layer the active weights of least magnitude
    are dropped, and as many positions are grown where the method's score is largest (see
    `sparsekern.ops.update_topology`). Weights keep their Parameter, kept positions their value and optimizer
    state; new positions have 0 in both. The number of active weights never changes.

    Parameters
    ----------
    model : nn.Module
        With sparse layers, those of `sparsify_`; may be wrapped in DDP or compiled. Layers whose weight needs
        no gradient stay as they are, also while it is frozen later.
    optimizer : torch.optim.Optimizer
        Trains all their weights. Steps are counted where they really happen: neither the batches that
        gradients are accumulated over nor the steps that a GradScaler leaves out count.
    update_every : int
        Steps between updates.
    drop_fraction : float
        In (0, 1]: an update drops ``int(fraction * nnz)`` of a layer's weights, with this fraction at first.
    stop_at : int, optional
        There is no update after this many steps or later.
    schedule : str, optional
        ``"cosine"`` (the fraction falls to 0 at `stop_at`), ``"constant"``, or ``"lr"`` (in proportion to the
        learning rate). By default cosine if `stop_at` is given, else constant.
    update : str
        ``"after_step"``, or ``"replaces_step"``: at an update no weight takes a step.
    regrow_dropped : bool
        Whether a position may come back in the update that drops it; it then keeps value and state.
    grow_gradient : str
        For methods that grow by gradient: ``"batch"``, that of the step before the update, or ``"holdout"``.
    holdout : callable, optional
        For ``"holdout"``: returns the loss of a fixed batch, with whatever regularization is to be in its
        gradient. Called at the updates of methods that read the gradient, in whatever mode the model is; its
        running statistics stay as they are. Must not call a DDP wrapper.
    new_values : str
        ``"zero"``, or ``"per_neuron"``: drawn as `sparsekern.init.per_neuron_` does.
    nonfinite : str
        What happens to an update whose gradient has an infinity or NaN: ``"skip"`` it, with one warning, or
        ``"raise"`` a FloatingPointError. Nothing is changed by either.
    on_update : callable, optional
        Called with the `UpdateStatistics` after each update.
    exclude : names or glob patterns
        Sparse layers to leave as they are.
    seed : int
        All that is drawn at random follows from it, from the update's number and the layer.
    process_group : ProcessGroup, ``"world"`` or None
        The processes that train this model together, if `torch.distributed` is initialized: gradients are
        summed over them before magnitudes are taken, and a difference between their patterns ends the run.

    Attributes
    ----------
    steps, updates : int
        Steps taken, updates made.
    next_update : int or None
        Number of steps after which the next update comes.
    last_update : UpdateStatistics or None

    Raises
    ------
    TypeError, ValueError
        For arguments that are none of the above, a model without sparse layers, an optimizer without their
        weights or whose state cannot move with them, and layers that another method moves.
    """

    #: Whether `scores` reads the gradient; whether no more of it than `Growth.largest_gradients`; and whether
    #: `take_step` reads it after every step.
    reads_gradient: ClassVar[bool] = False
    selects_largest: ClassVar[bool] = False
    follows_gradient: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        update_every: int = 100,
        drop_fraction: float = 0.3,
        stop_at: int | None = None,
        schedule: str | None = None,
        update: str = "after_step",
        regrow_dropped: bool = True,
        grow_gradient: str = "batch",
        holdout: Callable[[], Tensor] | None = None,
        new_values: str = "zero",
        nonfinite: str = "skip",
        on_update: Callable[[UpdateStatistics], None] | None = None,
        exclude: Iterable[str] = (),
        seed: int = 0,
        process_group: Any = "world",
    ) -> None:
        self.options = Options.checked(
            update_every=update_every,
            drop_fraction=drop_fraction,
            stop_at=stop_at,
            schedule=schedule,
            update=update,
            regrow_dropped=regrow_dropped,
            grow_gradient=grow_gradient,
            holdout=holdout,
            new_values=new_values,
            nonfinite=nonfinite,
            seed=seed,
        )
        optimizer = unwrapped_optimizer(optimizer)
        check_arguments(model, optimizer, on_update)
        self._ranks = Ranks(process_group)
        model = unwrapped(model)
        self.layers = driven_layers(model, optimizer, excluded_names(model, exclude))
        for layer in self.layers:
            check_states(optimizer, layer.parameter, layer.name)
            self.options.check_sharding(layer.name, layer.is_sharded)
        self.optimizer = optimizer
        self.updates = 0
        self.last_update: UpdateStatistics | None = None
        self._timetable = self._plan()
        self._model = model
        self._holdout = holdout
        self._on_update = on_update
        self._withheld = Withheld()
        self._fractions: dict[str, float] = {}
        self._checked = self._saw_states = self._warned = False
        self._attach(self._before_step, self._after_step)
        for layer in self.layers:
            if self.next_update is not None and int(self.options.drop_fraction * layer.pattern.nnz):
                layer.store_all_tiles()
        self._prepare()

    def scores(self, growth: Growth) -> Scores | None:
        """The scores by which one layer grows, largest first; None leaves it as it is. Methods override
        this."""
        raise NotImplementedError

    def gradient_of(self, layer: DrivenLayer) -> Tensor:
        """The dense gradient of the step that was just taken, summed over processes; for `take_step`."""
        return dense_total(layer, self._ranks)

    def take_step(self) -> None:
        """Called after every step that was taken, and before the update that may follow it."""

    def follow(self, model: nn.Module) -> None:
        """Move the patterns of a copy of the model along, with its own weights: an EMA, for example.

        Parameters
        ----------
        model : nn.Module
            With the same sparse layers on the same patterns; may be a `torch.optim.swa_utils.AveragedModel`.

        Raises
        ------
        TypeError, ValueError
            For anything else; nothing is changed.
        """
        check_model(model)
        copy = unwrapped(model)
        followers = [layer.matching(copy) for layer in self.layers]
        for layer, follower in zip(self.layers, followers):
            layer.followers.append(follower)

    def layer_state(self, layer: DrivenLayer) -> dict[str, Any]:
        return layer.state()

    def _load_layers(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        for layer in self.layers:
            layer.load(states[layer.name])
        self._checked = False
        self._fractions.clear()
        self._prepare()

    def _plan(self) -> Timetable:
        return Timetable(self.options.update_every, self.options.stop_at)

    def _prepare(self) -> None:
        """Tell every watch what to keep of the next step's gradient; the step before counts contributions."""
        if not self._attachment.is_active:
            return
        watching = self.reads_gradient and self.options.grow_gradient == "batch"
        watching = watching and (self.follows_gradient or self._timetable.within(2))
        keeping = self.follows_gradient or self._timetable.within(1)
        for layer in self.layers:
            layer.watch_gradient(watching and layer.parameter.requires_grad)
            layer.watch.keep = self._keep(layer) if layer.is_watched and keeping else None

    def _keep(self, layer: DrivenLayer) -> Callable[..., Any]:
        alone = self._ranks.size == 1 and layer.block_size is None
        if self.selects_largest and alone and layer.passes == 1:
            return keep_candidates(layer, lambda: self._count(layer))
        return keep_factors(layer)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._withheld.give_back()
        if not self._checked:
            self._check_same("before its first step", [layer.pattern for layer in self.layers])
            self._checked = True
        if not self._timetable.is_next():
            return None
        if self.options.nonfinite == "raise" and not left_out(optimizer):
            # Where a closure computes the gradient inside the step, it is looked at after it.
            for layer in self.layers:
                here = not all(map(is_finite, layer.watch.kept))
                if self._ranks.any(here, layer.pattern.device):
                    self._report_nonfinite(NotFiniteError(layer.name), self.steps + 1)
        if self.options.update == "replaces_step":
            return self._withheld.arguments(optimizer, args, kwargs)
        return None

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._withheld.give_back()
        self._timetable.add_call(optimizer)
        try:
            if not self._saw_states:
                # Most optimizers make their state in the first step.
                self._check_layers()
                self._saw_states = True
            if not (self.follows_gradient and left_out(optimizer)):
                self.take_step()
            if self._timetable.is_due():
                self._update()
        finally:
            self._fractions.clear()
            for layer in self.layers:
                layer.end_step()
            self._prepare()

    def _update(self) -> None:
        self._check_layers()
        for layer in self.layers:
            layer.forget_outdated()
        kept = [layer.watch.kept for layer in self.layers]
        if any(len(entries) > 1 and any(isinstance(e, Selected) for e in entries) for entries in kept):
            # Gradients have begun to be accumulated, and candidates of one part say nothing about the sum.
            self._timetable.postpone()
            return
        counts = {layer.name: self._count(layer) for layer in self.layers}
        update = Update(
            number=self.updates + 1,
            layers=self.layers,
            options=self.options,
            ranks=self._ranks,
            fractions=dict(self._fractions),
            counts=counts,
            at_active=self._watch_holdout(),
        )
        try:
            targets = update.targets(self.scores)
        except NotFiniteError as error:
            self._timetable.advance()
            self._report_nonfinite(error, self.steps)
            return
        new = [targets.get(layer.name, layer.pattern) for layer in self.layers]
        self._check_same(f"at the update after step {self.steps:,}", new)
        changes = update.apply(targets, self.optimizer)
        self._timetable.advance()
        self.updates = update.number
        self.last_update = UpdateStatistics(self.steps, self.updates, changes)
        if self._on_update is not None:
            self._on_update(self.last_update)

    def _count(self, layer: DrivenLayer) -> int:
        """Positions to exchange. Asked for in the backward pass, the answer holds for the update after it."""
        if layer.name not in self._fractions:
            options = self.options
            self._fractions[layer.name] = drop_fraction(
                options.schedule,
                options.drop_fraction,
                self.next_update,
                options.stop_at,
                layer.learning_rate_ratio(self.optimizer),
            )
        return layer.count(self._fractions[layer.name], self.options.regrow_dropped)

    def _watch_holdout(self) -> dict[str, Tensor]:
        if not self.reads_gradient or self._holdout is None:
            return {}
        trained = [layer for layer in self.layers if layer.parameter.requires_grad]
        for layer in trained:
            layer.watch.keep = keep_factors(layer)
        if not trained:
            return {}
        with keeping_running_statistics(self._model):
            return watch_holdout(self._holdout, trained)

    def _check_same(self, when: str, patterns: Sequence[Pattern]) -> None:
        if self._ranks.size > 1:
            layers = [f"the pattern of layer {layer.name!r}" for layer in self.layers]
            names = ["the number of steps", *layers]
            checksums = [self.steps, *(pattern.checksum() for pattern in patterns)]
            self._ranks.check_same(names, checksums, f"{type(self).__name__} {when}", patterns[0].device)

    def _report_nonfinite(self, error: NotFiniteError, step: int) -> None:
        message = f"the gradient of layer {error.layer!r} is not finite at the update after step {step:,}"
        if self.options.nonfinite == "raise":
            raise FloatingPointError(message)
        if not self._warned:
            warnings.warn(f"{message}, which is left out, as all such will be", stacklevel=3)
            self._warned = True
