"""Gradients that an optimizer is not given, so that an update can take the place of its step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Withheld"]


class Withheld:
    """Takes all gradients from an optimizer for one step, which then does nothing, and gives them back."""

    def __init__(self) -> None:
        self._grads: list[tuple[Tensor, Tensor]] = []

    def arguments(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What ``step`` is to be called with, for a step pre-hook. A closure still computes the gradients."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._take(optimizer)
            return None

        def without_gradients() -> Any:
            loss = closure()
            self._take(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": without_gradients}
        return (args[0], without_gradients, *args[2:]), kwargs

    def give_back(self) -> None:
        """Put the gradients where they were, unless the step failed and there are new ones by now."""
        if all(parameter.grad is None for parameter, _ in self._grads):
            for parameter, grad in self._grads:
                parameter.grad = grad
        self._grads.clear()

    def _take(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._grads.append((parameter, parameter.grad))
                    parameter.grad = None
