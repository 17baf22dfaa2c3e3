"""`AttachedMethod`: changes the patterns of sparse layers after some of an optimizer's steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import torch

from sparsekern.methods.attachment import Attachment, Hook
from sparsekern.methods.driven_layer import DrivenLayer
from sparsekern.methods.method_state import NEVER, read_state, state_of
from sparsekern.methods.optimizer_state import check_states
from sparsekern.methods.timetable import Timetable

__all__ = ["AttachedMethod"]


class AttachedMethod:
    """What methods have in common that hang on an optimizer: they count its steps, and their state travels
    in its own. A subclass sets the attributes before it calls :meth:`_attach`.

    Attributes
    ----------
    optimizer : torch.optim.Optimizer
    layers : list of DrivenLayer
        What is changed.
    options : dataclass
        With `own_options`, what decides the updates: equal ones make equal runs.
    own_options : mapping of str to plain values
    steps, updates : int
        Steps taken, updates made.
    next_update : int or None
        Number of steps after which the next update comes.
    """

    own_options: Mapping[str, Any] = MappingProxyType({})
    optimizer: torch.optim.Optimizer
    layers: list[DrivenLayer]
    options: Any
    updates: int
    _timetable: Timetable
    _attachment: Attachment

    @property
    def steps(self) -> int:
        """Steps that the optimizer has taken since this was attached."""
        return self._timetable.steps

    @property
    def next_update(self) -> int | None:
        """Number of steps after which the next update comes; None after the last."""
        return self._timetable.next_update

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in asdict(self.options).items() if value is not None]
        following = "no more" if self.next_update is None else f"the next after step {self.next_update:,}"
        return (
            f"{type(self).__name__}({', '.join(given)}) of {len(self.layers)} sparse weights: "
            f"{self.updates:,} updates in {self.steps:,} steps, {following}"
        )

    def detach(self) -> None:
        """Take all hooks away: patterns stay as they are from now on. `on_update` may call it."""
        self._attachment.remove()
        for layer in self.layers:
            layer.detach()

    def state_dict(self) -> dict[str, Any]:
        """What another process needs to go on exactly; patterns are in the model's state dict.

        The optimizer's state dict holds it too, so that loops which save that need no change. Those of
        `torch.distributed.checkpoint` drop it: save this one beside, and load it after all others.
        """
        return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; load model and optimizer too.

        Raises
        ------
        ValueError
            For the state of another method, model or options; nothing is changed.
        """
        state = read_state(self, state)
        next_update = None if state["next_update"] == NEVER else state["next_update"]
        self._timetable.resume(state["steps"], next_update)
        self.updates = state["updates"]
        self._load_layers(state["layers"])

    def layer_state(self, layer: DrivenLayer) -> dict[str, Any]:
        """What the method's state has of a layer: plain values and tensors."""
        raise NotImplementedError

    def check_layer_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise ValueError for what :meth:`layer_state` cannot have returned, though it has its keys and
        types."""

    def _load_layers(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take what :meth:`layer_state` returned, by layer name."""
        raise NotImplementedError

    def _attach(self, before: Hook, after: Hook) -> None:
        """Claim the layers, and hang on the optimizer's step and state dict."""
        for layer in self.layers:
            layer.attach(self)
        self._attachment = Attachment(
            self.optimizer,
            type(self).__name__,
            {layer.name: layer.parameter for layer in self.layers},
            before=before,
            after=after,
            state_dict=self.state_dict,
            check_state=lambda state: read_state(self, state),
            load_state_dict=self.load_state_dict,
        )

    def _check_layers(self) -> None:
        """Raise unless the layers have their Parameters still, and optimizer states that can move along."""
        for layer in self.layers:
            layer.check_attached()
            check_states(self.optimizer, layer.parameter, layer.name)
