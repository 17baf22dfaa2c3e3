"""The loss on the straight line between two networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparsekern.analysis.arguments import check_callable, check_network, check_several
from sparsekern.analysis.networks import copy_of, dense_copy
from sparsekern.formats.checks import describe, is_number

__all__ = ["barrier", "interpolate", "paper_alphas"]

Result = TypeVar("Result")
State = Mapping[str, Any]
# Ends of a path are recognized within this.
AT_AN_END = 1e-9


def paper_alphas() -> list[float]:
    """The 29 positions -0.2, -0.15, ..., 1.2 at which the paper evaluates; 0 and 1 are among them exactly.

    Source: ``rigl_tf2/interpolate.py`` in google-research/rigl.
    """
    return [(number - 4) / 20 for number in range(29)]


def interpolate(
    model: nn.Module,
    start_state: State | nn.Module,
    end_state: State | nn.Module,
    alphas: Sequence[float],
    evaluate: Callable[[nn.Module], Result],
) -> list[Result]:
    r"""Evaluates networks on the line through two.

    .. math:: \theta(\alpha) = (1 - \alpha) \, \theta_\mathrm{start} + \alpha \, \theta_\mathrm{end}

    over all parameters and buffers of the dense networks (running means of batch normalization, say) that are
    real or complex, so that the two may have different patterns. Of the nearer end are integers, such as
    counters, and what a module keeps by ``get_extra_state``. At 0 and 1 the networks are the two ends bit for
    bit.

    Parameters
    ----------
    model : torch.nn.Module
        The architecture, with dense or sparse layers, its mode and what a state dict does not have, such as
        buffers that are not persistent, which stay the same all along; left unchanged.
    start_state, end_state : mapping of str to Tensor, or torch.nn.Module
        A state dict of `model`, or of the same model with other patterns or dense; or a module that has it,
        whose buffers that are not persistent are not used.
        Left unchanged.
    alphas : sequence of float
        Positions; 0 is the start and 1 the end, and others lie before, between or beyond.
    evaluate : callable (torch.nn.Module) -> Any
        Called for each position with a dense network in the mode of `model`, whatever a call before did. It
        is always the same object, so take numbers from it and do not keep it.

    Returns
    -------
    list
        What `evaluate` returned, in the order of `alphas`.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or a state does not fit the model: names what differs.

    References
    ----------
    Evci, Ioannou, Keskin, Dauphin, *Gradient flow in sparse neural networks and how lottery tickets win*
    (2022): from a ticket to the pruning solution.
    """
    inner = check_network(model)
    prefix = _prefix(model, inner)
    positions = _checked_alphas(alphas)
    check_callable(evaluate, "evaluate", "(model) -> result")
    twin = dense_copy(inner)
    start = _dense_state(inner, twin, _without(prefix, start_state), "start_state")
    end = _dense_state(inner, twin, _without(prefix, end_state), "end_state")
    modes = [(module, module.training) for module in twin.modules()]
    results = []
    for alpha in positions:
        for module, training in modes:
            module.training = training
        twin.load_state_dict({name: _mixed(name, start[name], end[name], alpha) for name in start})
        results.append(evaluate(twin))
    return results


def _prefix(wrapped: nn.Module, inner: nn.Module) -> str:
    """What the names in the state dict of a wrapped model begin with."""
    return next(f"{name}." if name else "" for name, module in wrapped.named_modules() if module is inner)


def _without(prefix: str, state: State | nn.Module) -> State | nn.Module:
    """The state of what is inside of a wrapper, given the wrapper's, which may have entries of its own."""
    if not prefix or not isinstance(state, Mapping) or not any(key.startswith(prefix) for key in state):
        return state
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _mixed(name: str, start: Any, end: Any, alpha: float) -> Any:
    if _is_opaque(name, start):
        # A copy, which the module may keep and change.
        return copy.deepcopy(start if alpha <= 0.5 else end)
    continuous = start.is_floating_point() or start.is_complex()
    # The formula alone would turn -0.0 into 0.0 at the ends, and what is infinite at the other one into NaN.
    if alpha == 0 or (not continuous and alpha <= 0.5):
        return start
    if alpha == 1 or not continuous:
        return end
    return (1 - alpha) * start + alpha * end


def _is_opaque(name: str, value: Any) -> bool:
    """Whether an entry of a state dict is a module's own affair: that of ``get_extra_state``."""
    return not isinstance(value, Tensor) or name.rpartition(".")[2] == "_extra_state"


def _dense_state(model: nn.Module, twin: nn.Module, state: State | nn.Module, name: str) -> dict[str, Any]:
    """The state of the dense network; copies where a sparse layer was made dense."""
    own = twin.state_dict()
    if isinstance(state, nn.Module):
        dense: State = dense_copy(check_network(state, name)).state_dict()
    elif not isinstance(state, Mapping):
        raise TypeError(f"{name} must be a state dict or a torch.nn.Module, got {describe(state)}")
    elif state.keys() == own.keys():
        dense = state
    else:
        dense = _unpacked(model, state, name)
    if dense.keys() != own.keys():
        odd = sorted(dense.keys() ^ own.keys())
        raise ValueError(f"{name} must have the names of the model, and differs in {', '.join(odd[:5])}")
    opaque = {key for key, value in own.items() if _is_opaque(key, value)}
    for key, tensor in own.items():
        found = dense[key]
        if key in opaque:
            continue
        if not isinstance(found, Tensor) or found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise ValueError(f"{name}[{key!r}] must be {describe(tensor)}, got {describe(found)}")
    return {
        key: dense[key] if key in opaque else dense[key].detach().to(tensor.device)
        for key, tensor in own.items()
    }


def _unpacked(model: nn.Module, state: State, name: str) -> State:
    """The dense state of a packed one, whose patterns are not the model's."""
    packed = copy_of(model)
    try:
        # assign, since another pattern may have another number of values. The copies keep the given tensors
        # out of reach.
        copies = {
            key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for key, value in state.items()
        }
        packed.load_state_dict(copies, assign=True)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{name} must be a state dict of the model, sparse or dense: {error}") from error
    return dense_copy(packed).state_dict()


def barrier(losses: Sequence[float], alphas: Sequence[float]) -> float:
    r"""How far the loss rises, between two networks, above the line that connects their losses.

    .. math:: \max_{\alpha \in [0, 1]} \left[ L(\theta(\alpha)) - (1 - \alpha) L(\theta(0))
              - \alpha L(\theta(1)) \right]

    over those of `alphas` that lie in [0, 1]. It is at least 0; two networks with a barrier of about 0 are
    linearly mode connected. Frankle et al. subtract the mean of both ends, which is the same where these are
    equal; on the line, a path that only descends has no barrier.

    Parameters
    ----------
    losses : sequence of float
        Errors will do too: any quantity that is to be low.
    alphas : sequence of float
        The position of each; 0 and 1 are among them.

    Returns
    -------
    float
        In the units of `losses`; NaN where one in [0, 1] is NaN, or that of an end infinite.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above.

    References
    ----------
    Frankle, Dziugaite, Roy, Carbin, *Linear mode connectivity and the lottery ticket hypothesis* (2020),
    Section 2; Entezari, Sedghi, Saukh, Neyshabur, *The role of permutation invariance in linear mode
    connectivity of neural networks* (2022), Section 2, for the line.
    """
    positions = _checked_alphas(alphas)
    values = [_number(value) for value in check_several(losses, "losses", 2, "numbers")]
    if len(values) != len(positions):
        raise ValueError(f"losses must be one for each of {len(positions)} alphas, got {len(values)}")
    if any(value is None for value in values):
        raise TypeError(f"losses must be numbers, got {describe(losses)}")
    ends = []
    for end in (0, 1):
        at = [value for value, alpha in zip(values, positions) if abs(alpha - end) <= AT_AN_END]
        if not at:
            raise ValueError(f"alphas must contain 0 and 1, the ends of the path, got {describe(alphas)}")
        ends.append(at[0])
    rises = [
        value - ((1 - alpha) * ends[0] + alpha * ends[1])
        for value, alpha in zip(values, positions)
        if AT_AN_END < alpha < 1 - AT_AN_END
    ]
    # The rise at an end, 0, is NaN where its loss is no number to compare with.
    rises += [end - end for end in ends]
    return float(torch.tensor(rises, dtype=torch.float64).max())


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return float(value) if is_number(value) else None


def _checked_alphas(alphas: Any) -> list[float]:
    values = [_number(value) for value in check_several(alphas, "alphas", 1, "numbers")]
    if any(value is None or abs(value) == float("inf") or value != value for value in values):
        raise ValueError(f"alphas must be finite numbers, got {describe(alphas)}")
    return values
