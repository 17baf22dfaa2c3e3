"""Gradient flow: the norm of the gradient that the active weights get."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.analysis.networks import copy_of
from sparsekern.formats.checks import check_integer, describe, is_integer, is_number
from sparsekern.methods.arguments import check_model, check_optimizer, unwrapped
from sparsekern.methods.attached import AttachedMethod
from sparsekern.methods.timetable import Timetable
from sparsekern.nn import TwoFourLayer

__all__ = ["GradientFlow", "GradientFlowRecorder", "MaskUpdateRecorder", "gradient_flow"]

#: The loss of a fixed batch, of the model it is given.
Loss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class GradientFlow:
    """Norms of one gradient.

    Attributes
    ----------
    norm : float
        Over all parameters that require a gradient.
    parameters : mapping of str to float
        By parameter name; 0 for one that the loss does not depend on.
    """

    norm: float
    parameters: Mapping[str, float] = field(repr=False)


def gradient_flow(model: nn.Module, loss: Loss) -> GradientFlow:
    r"""The L2 norm of a loss' gradient with respect to the active weights and biases.

    .. math:: \Big(\sum_{i \,:\, m_i = 1} \big(\partial L / \partial \theta_i\big)^2\Big)^{1/2}

    Sparse layers have a gradient at active positions alone; in dense ones every weight is active, except
    those that a mask multiplies with 0. The loss is evaluated on a copy of the model in its own mode, without
    wrappers (DDP, `torch.compile`, averages), so that gradients, the statistics of normalization layers and
    methods that observe the gradient see nothing of it, and PyTorch's random state is put back.

    Parameters
    ----------
    model : torch.nn.Module
    loss : callable
        Takes the copy and returns the loss of a fixed batch, a scalar: ``lambda model:
        F.cross_entropy(model(images), labels)``. Leave regularization out.

    Returns
    -------
    GradientFlow
        In float64 sums, and in the unit of the loss by that of a weight; NaN where the loss is not finite, as
        the mean over an empty batch.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, nothing in the model is trained, or the loss depends on no
        parameter of the model that it is given.

    References
    ----------
    Evci et al., *Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win* (2022), Section 3.
    """
    check_model(model)
    _check_loss(loss)
    with torch.inference_mode(False), torch.enable_grad():
        return _flow(copy_of(unwrapped(model)), loss)


def _flow(twin: nn.Module, loss: Loss) -> GradientFlow:
    """Of a model whose buffers may change."""
    trained = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    with torch.random.fork_rng(_cuda_devices(twin)):
        value = loss(twin)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError(f"loss must return a scalar tensor, got {describe(value)}")
        gradients = _gradients(value, trained)
    masks = _masks(twin)
    squares = {
        name: float(_active(gradient, masks.get(name)).double().square().sum())
        for name, gradient in gradients.items()
    }
    if not bool(value.isfinite().all()):
        # Its gradient may well be 0, as that of the mean over no examples is.
        squares = dict.fromkeys(squares, math.nan)
    norms = {name: squares.get(name, 0.0) ** 0.5 for name in trained}
    return GradientFlow(sum(squares.values()) ** 0.5, norms)


def _gradients(value: Tensor, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """By name, the gradient of each parameter that the loss depends on: of one at least."""
    found: tuple[Tensor | None, ...] = ()
    if value.requires_grad:
        found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(trained, found) if gradient is not None}
    if not gradients:
        raise ValueError(
            "loss must depend on the parameters of the model that it is given, which is a copy, got a value "
            "that depends on none of them"
        )
    return gradients


def _check_loss(loss: Any) -> None:
    if not callable(loss):
        raise TypeError(f"loss must be a function of the model, got {describe(loss)}")


def _masks(model: nn.Module) -> dict[str, Tensor]:
    """By parameter name, the masks of 2:4 weights whose gradient goes straight through to what is pruned."""
    return {
        f"{name}.weight" if name else "weight": layer.mask
        for name, layer in model.named_modules()
        if isinstance(layer, TwoFourLayer) and layer.method != "fixed"
    }


def _active(gradient: Tensor, mask: Tensor | None) -> Tensor:
    return gradient if mask is None else gradient * mask


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return list({tensor.device for tensor in model.parameters() if tensor.is_cuda})


class GradientFlowRecorder:
    """Measures the gradient flow every so many steps of an optimizer, until :meth:`remove`.

    A checkpoint takes `state_dict` to go on with the history; the optimizer's has nothing of it.

    Parameters
    ----------
    model : torch.nn.Module
    optimizer : torch.optim.Optimizer
    loss : callable
        See `gradient_flow`.
    every : int
        Steps between measurements; the first is made at once. Steps that a GradScaler leaves out do not
        count.

    Attributes
    ----------
    history : list of (int, GradientFlow)
        Steps taken, and the gradient flow then.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or for what `gradient_flow` refuses.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, *, every: int = 200
    ) -> None:
        check_optimizer(optimizer)
        self._model, self._loss = model, loss
        self._timetable = Timetable(check_integer(every, "every"), stop_at=None)
        self.history = [(0, gradient_flow(model, loss))]
        self._handle = optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        self._timetable.add_call(optimizer)
        if self._timetable.is_due():
            self.history.append((self._timetable.steps, gradient_flow(self._model, self._loss)))
            self._timetable.advance()

    def state_dict(self) -> dict[str, Any]:
        """What another process needs to go on: numbers, strings, lists and dicts alone.

        Returns
        -------
        dict
            ``steps``, taken so far, and ``history``, a list of dicts with ``steps``, ``norm`` and
            ``parameters``.
        """
        history = [
            {"steps": steps, "norm": flow.norm, "parameters": dict(flow.parameters)}
            for steps, flow in self.history
        ]
        return {"steps": self._timetable.steps, "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; what was measured since this one was made is dropped.

        The next measurement is after the next multiple of `every` steps.

        Raises
        ------
        ValueError
            For what :meth:`state_dict` does not return; nothing is changed.
        """
        steps, history = _read_state(state)
        self.history = history
        self._timetable.resume(steps, next_update=None)
        self._timetable.advance()

    def remove(self) -> None:
        """Measure no more."""
        self._handle.remove()


def _read_state(state: Any) -> tuple[int, list[tuple[int, GradientFlow]]]:
    """Steps and history of a recorder's state."""
    _check_keys(state, "state", ("steps", "history"))
    last = _count(state["steps"], "state['steps']")
    if not isinstance(state["history"], list):
        raise ValueError(f"state['history'] must be a list, got {describe(state['history'])}")
    history: list[tuple[int, GradientFlow]] = []
    for number, found in enumerate(state["history"]):
        name = f"state['history'][{number}]"
        _check_keys(found, name, ("steps", "norm", "parameters"))
        steps, least = _count(found["steps"], f"{name}['steps']"), history[-1][0] + 1 if history else 0
        if not least <= steps <= last:
            raise ValueError(f"{name}['steps'] must be from {least} to {last}, got {steps}")
        parameters = found["parameters"]
        if not isinstance(parameters, Mapping) or not all(isinstance(own, str) for own in parameters):
            raise ValueError(f"{name}['parameters'] must be norms by name, got {describe(parameters)}")
        norms = {own: _norm(norm, f"{name}['parameters'][{own!r}]") for own, norm in parameters.items()}
        history.append((steps, GradientFlow(_norm(found["norm"], f"{name}['norm']"), norms)))
    return last, history


def _check_keys(value: Any, name: str, keys: tuple[str, ...]) -> None:
    if not isinstance(value, Mapping) or value.keys() != set(keys):
        raise ValueError(f"{name} must be a dict of {', '.join(keys)}, got {describe(value)}")


def _count(value: Any, name: str) -> int:
    if not is_integer(value) or value < 0:
        raise ValueError(f"{name} must be an integer from 0, got {describe(value)}")
    return int(value)


def _norm(value: Any, name: str) -> float:
    if not is_number(value) or value < 0:
        raise ValueError(f"{name} must be a number from 0 or NaN, got {describe(value)}")
    return float(value)


class MaskUpdateRecorder:
    """Measures the gradient flow right before and right after each update of the masks.

    Make it before the method and :meth:`follow` the method: hooks of an optimizer are called in the order in
    which they were registered, and this one has to come between a step and the update after it.

    Parameters
    ----------
    model : torch.nn.Module
    optimizer : torch.optim.Optimizer
    loss : callable
        See `gradient_flow`.

    Attributes
    ----------
    before : GradientFlow or None
        Before the update that was due after the last step; None where none was.

    Raises
    ------
    TypeError
        When an argument is none of the above.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss) -> None:
        check_model(model)
        check_optimizer(optimizer)
        _check_loss(loss)
        self._model, self._loss = model, loss
        self._method: Any = None
        self.before: GradientFlow | None = None
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def follow(self, method: Any) -> None:
        """Measure at the updates of this `DynamicMethod` or `GradualPruning` on the same optimizer.

        Raises
        ------
        TypeError
            When `method` is neither.
        """
        if not isinstance(method, AttachedMethod):
            raise TypeError(f"method must be a DynamicMethod or GradualPruning, got {describe(method)}")
        self._method = method

    def _before_step(self, *step: object) -> None:
        # What was measured around an earlier step says nothing about an update in this one.
        self.before = None

    def _after_step(self, *step: object) -> None:
        if self._method is None or self._method.next_update is None:
            return
        # The method counts this step later, in its own hook.
        if self._method.next_update == self._method.steps + 1:
            self.before = gradient_flow(self._model, self._loss)

    def after(self) -> tuple[GradientFlow, GradientFlow]:
        """Gradient flow before and after the update that was just made; for the method's `on_update`.

        Raises
        ------
        RuntimeError
            When nothing was measured before it.
        """
        if self.before is None:
            raise RuntimeError(
                "the recorder must follow the method, and be made before it, got no measurement"
            )
        return self.before, gradient_flow(self._model, self._loss)

    def remove(self) -> None:
        """Measure no more."""
        for handle in self._handles:
            handle.remove()
