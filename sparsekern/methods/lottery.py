"""Lottery tickets: iterative magnitude pruning around any training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparsekern.formats.checks import check_choice, check_integer, describe
from sparsekern.formats.pattern import Pattern
from sparsekern.methods.arguments import check_optimizer
from sparsekern.methods.at_init.selection import warn_of_emptied
from sparsekern.methods.magnitude import (
    Prunable,
    as_list,
    check_options,
    prunable_layers,
    select_by_magnitude,
)
from sparsekern.methods.rewinding import rewind_, snapshot
from sparsekern.methods.ticket_folder import Generators, Saved, TicketFolder
from sparsekern.methods.timetable import Timetable
from sparsekern.nn import SparseLayer
from sparsekern.nn.checks import STORAGES
from sparsekern.nn.distributions import Distribution

__all__ = ["Ticket", "TicketRound", "find_tickets", "round_sparsity"]

MODES = ("weights", "learning_rate", "restart")


@dataclass(frozen=True)
class Ticket:
    """What a round found: masks, and the weights that training starts from under them.

    Attributes
    ----------
    round : int
        1 for the first.
    sparsity : float
        That was asked for after this round.
    masks : dict of str to Pattern
        By layer name, on the CPU.
    state : dict of str to Tensor
        As `snapshot` gives it.
    start_step : int
        The step that a training of this ticket starts at, for its schedule and the order of its data.
    """

    round: int
    sparsity: float
    masks: Mapping[str, Pattern]
    state: Mapping[str, Any]
    start_step: int

    def apply_(self, model: nn.Module, *, storage: str = "compact") -> None:
        """Make `model` this ticket: ``rewind_(model, state, masks)``, with its parameters and errors."""
        rewind_(model, self.state, self.masks, storage=storage)


class TicketRound:
    """What `find_tickets` tells the function that trains.

    Attributes
    ----------
    index : int
        1 for the first round, which trains the dense network.
    sparsity : float
        Of the model in this round.
    start_step : int
        The step to start at: schedule and data go on from there, to the same end in every round.
    """

    def __init__(self, index: int, sparsity: float, start_step: int, wanted: int, model: nn.Module) -> None:
        self.index = index
        self.sparsity = sparsity
        self.start_step = start_step
        self.state: dict[str, Any] | None = None
        self._wanted = wanted
        self._timetable = Timetable(max(wanted, 1), None)
        self._model = model
        self._handle: RemovableHandle | None = None

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the optimizer's steps, but those that a GradScaler leaves out, to keep the weights of step
        `rewind_to`.

        Needed where `rewind_to` is above 0 and `mode` is ``"weights"``; it does nothing in other rounds than
        the first. Call it before the first step.

        Raises
        ------
        TypeError, ValueError
            For what is no optimizer, and for a second one.
        """
        check_optimizer(optimizer)
        if self._handle is not None:
            raise ValueError("optimizer must be the only one that is watched in a round, got a second one")
        self._handle = optimizer.register_step_post_hook(self._count)
        if not self._wanted:
            self._handle.remove()

    def _count(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # The hook stays until training ends: none can be taken away while PyTorch goes through them.
        if self.state is not None:
            return
        self._timetable.add_call(optimizer)
        if self._timetable.is_due():
            self.state = snapshot(self._model)

    def finish(self) -> dict[str, Any] | None:
        """The weights of the step that was wanted, None where none was.

        Raises
        ------
        ValueError
            When training has not come that far.
        """
        if self._handle is not None:
            self._handle.remove()
        if self._wanted and self.state is None:
            came = f"{self._timetable.steps} steps" if self._handle else "no call of round.watch(optimizer)"
            raise ValueError(f"train must take at least rewind_to = {self._wanted} steps, got {came}")
        return self.state


def find_tickets(
    make_model: Callable[[], nn.Module],
    train: Callable[[nn.Module, TicketRound], Any],
    *,
    sparsity: float,
    rounds: int = 1,
    mode: str = "weights",
    rewind_to: int = 0,
    scope: str = "global",
    distribution: Distribution = "uniform",
    exclude: Iterable[str] = (),
    storage: str = "compact",
    folder: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Ticket]:
    r"""Iterative magnitude pruning: train, prune the smallest weights, go back, and again.

    .. math:: s_r = 1 - (1 - s)^{r / R}

    is the sparsity after round r of R: each round takes the same fraction of what is left, and the last one
    reaches `sparsity` exactly (see `magnitude_masks`). One round is one-shot pruning. Round 1 trains the
    network as `make_model` gives it, round r the ticket of round r - 1; the last ticket is for you to train.

    Parameters
    ----------
    make_model : callable () -> torch.nn.Module
        Makes the network anew. Its weights are those of the first call: later ones are overwritten.
    train : callable (model, round) -> Any
        Trains `model` in place, from step ``round.start_step`` on, with an optimizer of its own, and moves it
        to a device if it wants; what it returns is left alone. It must not change the layers' masks to denser
        ones.
    sparsity : float
        Of the last ticket, in [0, 1).
    rounds : int
        How often to train and prune.
    mode : str
        What a ticket starts from. ``"weights"``: the weights, biases and buffers of step `rewind_to` of the
        first round, at which its training starts too. ``"learning_rate"``: the final weights of the round
        that found it; only the schedule goes back to step `rewind_to`. ``"restart"``: the final weights,
        with the whole schedule from step 0.
    rewind_to : int
        k; 0 is the original ticket. Above 0 with ``mode="weights"``, `train` must call
        ``round.watch(optimizer)``. Optimizer state is not rewound: each training has an optimizer of its
        own.
    scope, distribution, exclude :
        As in `magnitude_masks`.
    storage : str
        Of the layers that are trained sparse: ``"compact"`` or ``"masked"``.
    folder : path, optional
        Where masks and weights are kept round by round. Called again with it, after a crash for instance, the
        function goes on with the first round that was not finished, and ends with equal bits if `train`
        depends on nothing but its arguments and torch's generators, which are restored.
    settings : mapping of str to numbers, text or lists, optional
        What else decides the result, such as the learning rate: a folder of others is refused.

    Returns
    -------
    list of Ticket
        One for each round.

    Raises
    ------
    TypeError, ValueError
        For arguments out of range, a folder of other settings or with damaged files, a model that
        `magnitude_masks` refuses, and a training without step `rewind_to`.
    FloatingPointError
        When a trained weight is NaN or infinite.

    References
    ----------
    Those of `rewind_`.
    """
    search = _Search(make_model, train, sparsity, rounds, mode, rewind_to, scope, distribution, storage)
    search.exclude = [exclude] if isinstance(exclude, str) else as_list(exclude)
    search.start(folder, {} if settings is None else settings)
    for index in range(1, search.rounds + 1):
        if emptied := search.run(index):
            advice = "A lower sparsity or scope='layer' leaves more"
            warn_of_emptied(f"round {index}", round_sparsity(sparsity, index, rounds), emptied, advice)
    search.finish()
    return search.tickets


def round_sparsity(sparsity: float, index: int, rounds: int) -> float:
    """The sparsity after a round; the last one's is exactly the one asked for."""
    return float(sparsity) if index == rounds else 1 - (1 - sparsity) ** (index / rounds)


class _Search:
    """One call of `find_tickets`, its arguments checked."""

    exclude: Any
    _folder: TicketFolder | None = None

    def __init__(
        self,
        make_model: Any,
        train: Any,
        sparsity: Any,
        rounds: Any,
        mode: Any,
        rewind_to: Any,
        scope: Any,
        distribution: Any,
        storage: Any,
    ) -> None:
        for name, function in (("make_model", make_model), ("train", train)):
            if not callable(function):
                raise TypeError(f"{name} must be a function, got {describe(function)}")
        self._make, self._train = make_model, train
        self._sparsity = check_options(sparsity, scope, distribution)
        self._scope, self._distribution = scope, distribution
        self.rounds = check_integer(rounds, "rounds")
        self._mode = check_choice(mode, MODES, "mode")
        self._rewind_to = check_integer(rewind_to, "rewind_to", 0)
        if mode == "restart" and rewind_to:
            raise ValueError(f"rewind_to must be left out where mode='restart', got {rewind_to}")
        self._storage = check_choice(storage, STORAGES, "storage")
        self.tickets: list[Ticket] = []

    def start(self, folder: Any, settings: Any) -> None:
        """Make the network whose weights all rounds begin with, or take that of the folder."""
        model = self._made()
        layers = prunable_layers(model, self.exclude)
        # What cannot be pruned so far is an error before the first training, not after it.
        first = round_sparsity(self._sparsity, 1, self.rounds)
        select_by_magnitude(layers, first, self._scope, self._distribution)
        start = Saved(_masks_besides([], model), snapshot(model), Generators.now())
        if folder is not None:
            self._folder = TicketFolder(folder)
            shapes = {layer.name: list(layer.shape) for layer in layers}
            self._folder.open(self._own_settings(shapes), settings)
            start = self._folder.load_or_save(0, lambda: start)
        self._last = start

    def _made(self) -> nn.Module:
        model = self._make()
        if not isinstance(model, nn.Module):
            raise TypeError(f"make_model must return a torch.nn.Module, got {describe(model)}")
        return model

    def _own_settings(self, layers: dict[str, list[int]]) -> dict[str, Any]:
        return {
            "sparsity": self._sparsity,
            "rounds": self.rounds,
            "mode": self._mode,
            "rewind_to": self._rewind_to,
            "scope": self._scope,
            "distribution": self._distribution,
            "exclude": self.exclude,
            "storage": self._storage,
            "layers": layers,
        }

    def run(self, index: int) -> list[str]:
        """One round, or what the folder has of it; the layers that would have lost every weight."""
        emptied: list[str] = []

        def result() -> Saved:
            nonlocal emptied
            saved, emptied = self._result(index)
            return saved

        saved = result() if self._folder is None else self._folder.load_or_save(index, result)
        # A state is kept with the first round that has it.
        self._last = Saved(saved.masks, saved.state or self._last.state, saved.generators)
        sparsity = round_sparsity(self._sparsity, index, self.rounds)
        self.tickets.append(
            Ticket(index, sparsity, self._last.masks, self._last.state, self._start_step(index + 1))
        )
        return emptied

    def finish(self) -> None:
        """Leave torch's generators as the last round did, also where it was read from the folder."""
        self._last.generators.restore()

    def _result(self, index: int) -> tuple[Saved, list[str]]:
        model = self._made()
        rewind_(model, self._last.state, self._last.masks, storage=self._storage)
        self._last.generators.restore()
        before = round_sparsity(self._sparsity, index - 1, self.rounds)
        wanted = self._rewind_to if index == 1 and self._mode == "weights" else 0
        round_ = TicketRound(index, before, self._start_step(index), wanted, model)
        self._train(model, round_)
        state = round_.finish() if self._mode == "weights" else snapshot(model)
        after = round_sparsity(self._sparsity, index, self.rounds)
        layers = prunable_layers(model, self.exclude)
        masks, emptied = select_by_magnitude(layers, after, self._scope, self._distribution)
        patterns = {name: Pattern.from_mask(mask.cpu()) for name, mask in masks.items()}
        patterns |= _masks_besides(layers, model)
        return Saved(patterns, state, Generators.now()), emptied

    def _start_step(self, index: int) -> int:
        return 0 if index == 1 else self._rewind_to


def _masks_besides(layers: list[Prunable], model: nn.Module) -> dict[str, Pattern]:
    """Of sparse layers other than `layers`, on the CPU; of several that share a weight, the first."""
    seen = {id(layer.parameter) for layer in layers}
    patterns = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer) and id(module.stored_weight) not in seen:
            seen.add(id(module.stored_weight))
            patterns[name] = module.pattern.to("cpu")
    return patterns
