"""How a method hangs on an optimizer: hooks around its step and in its state dict."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

__all__ = ["Attachment", "attached_to"]

# Where a method's state lies in its optimizer's state dict.
KEY = "sparsekern"
# Those whose parameters no other optimizer may step.
_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
# Optimizers that are going through the hooks after their step, none of which can be taken away meanwhile.
_calling_hooks: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
Hook = Callable[[torch.optim.Optimizer, tuple[Any, ...], dict[str, Any]], Any]


class Attachment:
    """The hooks of one method on its optimizer.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    owner : str
        The method's name, for messages.
    parameters : dict of str to nn.Parameter
        What the method moves, by layer name: no other optimizer may step it.
    before, after : callable
        Hooks of ``optimizer.step``.
    state_dict, check_state, load_state_dict : callable
        The method's own; its state travels inside the optimizer's. It is checked before the optimizer loads
        anything, and loaded once that has succeeded.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        owner: str,
        parameters: dict[str, nn.Parameter],
        *,
        before: Hook,
        after: Hook,
        state_dict: Callable[[], dict[str, Any]],
        check_state: Callable[[Any], Any],
        load_state_dict: Callable[[dict[str, Any]], None],
    ) -> None:
        self._optimizer = optimizer
        self._owner = owner
        self._parameters = parameters
        self._state_dict = state_dict
        self._check_state = check_state
        self._load_state_dict = load_state_dict
        self._incoming: dict[str, Any] | None = None
        self._after: Hook | None = after
        self._after_handle = optimizer.register_step_post_hook(self._call_after)
        self._handles = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._check),
            optimizer.register_load_state_dict_post_hook(self._load),
        ]
        _attachments.add(self)
        _register_guard()

    @property
    def is_active(self) -> bool:
        """Whether the hooks are there."""
        return self._after is not None

    def remove(self) -> None:
        """Take all hooks away; where the one after the step is being called, it stays and does nothing."""
        self._after = None
        # A hook that stays must not keep weights alive that the optimizer has no more.
        self._parameters = {}
        _attachments.discard(self)
        if self._optimizer not in _calling_hooks:
            self._handles.append(self._after_handle)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _call_after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._after is None:
            return
        _calling_hooks.add(optimizer)
        try:
            self._after(optimizer, args, kwargs)
        finally:
            _calling_hooks.discard(optimizer)

    def _save(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, KEY: [*state_dict.get(KEY, []), self._state_dict()]}

    def _check(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        self._incoming = None
        found = state_dict.get(KEY, [])
        if not found:
            warnings.warn(
                f"the optimizer's state has none of {self._owner}, which goes on counting from where it is",
                stacklevel=2,
            )
            return None
        mine = [i for i, state in enumerate(found) if set(state.get("layers", ())) == set(self._parameters)]
        index = mine[0] if mine else 0
        self._check_state(found[index])
        self._incoming = found[index]
        # Methods on two models may have layers of the same names: the next one finds the states that are
        # left, which are in the order of the methods.
        return {**state_dict, KEY: found[:index] + found[index + 1 :]}

    def _load(self, optimizer: torch.optim.Optimizer) -> None:
        if self._incoming is not None:
            self._load_state_dict(self._incoming)
            self._incoming = None

    def _refuse_another(self, optimizer: torch.optim.Optimizer) -> None:
        # An optimizer around this one, such as those that step twice, has the very same groups.
        if optimizer is self._optimizer or optimizer.param_groups is self._optimizer.param_groups:
            return
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self._parameters.items():
            if id(parameter) in held:
                raise ValueError(
                    f"optimizer must be the only one that steps the weight of layer {name!r}, which "
                    f"{self._owner} moves with {type(self._optimizer).__name__}; got "
                    f"{type(optimizer).__name__}, which holds it too"
                )


def attached_to(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the methods whose state travels in an optimizer's."""
    return sorted(a._owner for a in _attachments if a._optimizer is optimizer and a.is_active)


@functools.cache
def _register_guard() -> None:
    """One hook of every optimizer there is, which stays: the garbage collector, which ends methods, may run
    while PyTorch goes through these hooks, and none can be taken away then."""
    register_optimizer_step_pre_hook(_guard)


def _guard(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for attachment in list(_attachments):
        attachment._refuse_another(optimizer)
