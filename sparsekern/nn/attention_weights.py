"""The weights of `torch.nn.MultiheadAttention`: whether they can be taken out of it, and how; and back."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from sparsekern.nn.reasons import STATE_DICT_HOOKS, is_hooked

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
# What every torch.nn.MultiheadAttention has, some of them None.
PACKED = frozenset({"in_proj_weight", "in_proj_bias", *(f"{name}_weight" for name in PROJECTIONS)})


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """The ``nn.Linear`` that has these very Parameters."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight, linear.bias = weight, bias
    return linear


def input_weights(attention: nn.MultiheadAttention) -> list[nn.Parameter]:
    """The weights of the queries', keys' and values' projections; new Parameters where they are packed."""
    if attention.in_proj_weight is not None:
        return _thirds(attention.in_proj_weight)
    return [getattr(attention, f"{name}_weight") for name in PROJECTIONS]


def input_biases(attention: nn.MultiheadAttention) -> list[nn.Parameter | None]:
    """Their biases, as new Parameters."""
    return [None] * 3 if attention.in_proj_bias is None else _thirds(attention.in_proj_bias)


def why_not_split(attention: nn.MultiheadAttention) -> str | None:
    """Why its weights cannot be taken out of it, None if they can."""
    for module, name in ((attention, "it"), (attention.out_proj, "its out_proj")):
        if parametrize.is_parametrized(module):
            return f"{name} is parametrized; torch.nn.utils.parametrize.remove_parametrizations undoes that"
        if any(vars(module).get(hooks) for hooks in STATE_DICT_HOOKS):
            return f"{name} has state-dict hooks, which would see other names"
        if "forward" in vars(module):
            return f"the forward of {name} was replaced on the instance"
        if any(p is not None and is_hooked(p) for p in module._parameters.values()):
            return f"a Parameter of {name} has gradient hooks"
    if set(attention._parameters) != PACKED | (attention._parameters.keys() & {"bias_k", "bias_v"}):
        return "its weights are computed by a hook (weight_norm, pruning), not Parameters"
    if set(attention._modules) != {"out_proj"} or attention._buffers:
        return "it holds modules or buffers of its own besides out_proj"
    kind = type(attention.out_proj)
    if kind not in (NonDynamicallyQuantizableLinear, nn.Linear):
        return f"its out_proj is a {kind.__name__}"
    if set(attention.out_proj._parameters) != {"weight", "bias"} or attention.out_proj._buffers:
        return "its out_proj holds more than weight and bias, or its weight is computed by a hook"
    return None


def _thirds(parameter: nn.Parameter) -> list[nn.Parameter]:
    return [nn.Parameter(part.clone(), parameter.requires_grad) for part in parameter.detach().chunk(3)]


def packed(parameters: list[nn.Parameter]) -> nn.Parameter:
    """A new Parameter that holds these, one below the other."""
    return nn.Parameter(torch.cat([p.detach() for p in parameters]), parameters[0].requires_grad)
