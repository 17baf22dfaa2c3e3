"""Why a layer cannot be made sparse, in words, with the way out where there is one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

DENSE_TYPES = (nn.Linear, nn.Conv2d)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STATE_DICT_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# Of hooks that load state dicts, those that PyTorch forgets when it removes a normalization. They rename keys
# of older versions of it, which a layer without it has none of.
LEFT_BEHIND = ("weight_norm.<locals>._weight_norm_compat_hook", "SpectralNormLoadStateDictPreHook")
# The Parameters and buffers that torch's functions put in the place of a weight, and what removes them.
COMPUTED = {
    ("weight_g", "weight_v"): ("weight_norm", "torch.nn.utils.remove_weight_norm(layer)"),
    ("weight_orig", "weight_u"): ("spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)"),
    ("weight_orig", "weight_mask"): ("pruning", "torch.nn.utils.prune.remove(layer, 'weight')"),
}
WAYS_OUT = {
    "Conv1d": "an nn.Conv2d with a kernel of (1, k) computes the same on x.unsqueeze(2)",
    "Conv1D": "an nn.Linear with the transposed weight computes the same",
    "MultiheadAttention": "sparsekern.nn.split_attention_(model) gives it projections that are",
}


def why_dense(module: nn.Module) -> str | None:
    """Why this module cannot become a sparse layer, None if it can."""
    if parametrize.is_parametrized(module):
        return _parametrized(module)
    if (why := _another_type(module)) is not None:
        return why
    weight = module._parameters.get("weight")
    if weight is None:
        return _computed(module)
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}, not a plain Parameter"
    if weight.dtype not in DTYPES:
        return f"dtype {weight.dtype} is not supported"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return (
            f"padding_mode={module.padding_mode!r} is not supported: pad in a layer before it, as with "
            "nn.ReflectionPad2d or nn.CircularPad2d"
        )
    if set(module._parameters) != {"weight", "bias"} or module._buffers or module._modules:
        return "it holds parameters, buffers or modules of its own besides weight and bias"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if any(_state_dict_hooks(module)):
        return "it has state-dict hooks, which would see values in place of a dense weight"
    if is_hooked(weight):
        return "its weight has gradient hooks"
    return None


def is_hooked(parameter: Tensor) -> bool:
    """Whether functions are called with this Parameter's gradient."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def is_read_past_forward(parent: nn.Module, name: str) -> bool:
    """Whether `parent` multiplies by the weight of its layer `name` itself, whatever that layer's forward."""
    return isinstance(parent, nn.MultiheadAttention) and name == "out_proj"


READ_PAST_FORWARD = (
    "nn.MultiheadAttention reads its weight, past its forward: sparsekern.nn.split_attention_(model) first"
)


def own_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's own Parameters of two or more dimensions."""
    return {
        name: p for name, p in module._parameters.items() if p is not None and not is_lazy(p) and p.dim() >= 2
    }


def _state_dict_hooks(module: nn.Module) -> list[object]:
    hooks = [hook for name in STATE_DICT_HOOKS for hook in vars(module).get(name, {}).values()]
    functions = [getattr(hook, "hook", hook) for hook in hooks]
    return [f for f in functions if getattr(f, "__qualname__", type(f).__qualname__) not in LEFT_BEHIND]


def _parametrized(module: nn.Module) -> str:
    names = list(module.parametrizations)
    kinds = {type(step).__name__.strip("_") for name in names for step in module.parametrizations[name]}
    removals = " and ".join(
        f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})" for name in names
    )
    return (
        f"parametrized: its {' and '.join(names)} is computed by {' and '.join(sorted(kinds))}, not a "
        f"Parameter; {removals} first"
    )


def _computed(module: nn.Module) -> str:
    held = {*module._parameters, *module._buffers}
    for names, (what, removal) in COMPUTED.items():
        if held.issuperset(names):
            return f"its weight is computed by a hook of {what}, not a Parameter; {removal} first"
    return "its weight is computed by a hook, not a Parameter; give it a Parameter named weight first"


def _another_type(module: nn.Module) -> str | None:
    kind = type(module)
    if kind in DENSE_TYPES:
        return None
    if any(is_lazy(p) for p in module._parameters.values()):
        return f"{kind.__name__} is not initialized yet; run the model once before"
    for base in DENSE_TYPES:
        if isinstance(module, base):
            return _subclass(kind, base)
    names = list(own_matrices(module))
    reason = f"{kind.__name__} is not nn.Linear or nn.Conv2d"
    if kind.__name__ in WAYS_OUT:
        return f"{reason}; {WAYS_OUT[kind.__name__]}"
    if names not in ([], ["weight"]):
        return f"{reason}: it holds {' and '.join(names)} itself"
    return reason


def _subclass(kind: type[nn.Module], base: type[nn.Module]) -> str:
    name = f"nn.{base.__name__}"
    # timm has a Linear of its own, say.
    own = kind.__name__ if kind.__name__ != base.__name__ else f"{kind.__module__}.{kind.__name__}"
    reason = f"{own} is a subclass of {name}; only the exact type is converted"
    same = all(
        getattr(kind, method) is getattr(base, method)
        for method in ("forward", "_conv_forward", "__call__")
        if hasattr(base, method)
    )
    if same:
        return f"{reason}: put an {name} with its weight and bias in its place"
    return f"{reason}: where its own forward computes the same, put an {name} in its place"
