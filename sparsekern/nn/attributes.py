"""What users put on a layer, hooks and attributes, handed over when another layer takes its place."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from sparsekern.nn.int8 import TwoFourLinearInt8
from sparsekern.nn.module import SparseModule

# The hooks that run around forward and backward. Handles that users keep point at these very dictionaries.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
# What every instance of the dense types holds; anything else on one was put there by a user.
DENSE_ATTRIBUTES = {
    nn.Linear: frozenset(vars(nn.Linear(1, 1, device="meta"))),
    nn.Conv2d: frozenset(vars(nn.Conv2d(1, 1, 1, device="meta"))),
}


def carry(old: nn.Module, new: nn.Module) -> None:
    """Hands over the hooks, and the attributes that `new` has no use of its own for."""
    is_sparse = isinstance(old, (SparseModule, TwoFourLinearInt8))
    dense, own = (old.dense_type, old.own_attributes) if is_sparse else (type(old), ())
    carry_beside(old, new, {*DENSE_ATTRIBUTES[dense], *own})


def carry_beside(old: nn.Module, new: nn.Module, own: Collection[str]) -> None:
    """Hands over the hooks, and the attributes that are neither `own` ones of the old module nor on `new`."""
    for name in HOOKS:
        if name in vars(old):
            vars(new)[name] = vars(old)[name]
    known = {*own, *vars(new)}
    for name, value in vars(old).items():
        if name not in known:
            vars(new)[name] = value


def taken_names(module: nn.Linear | nn.Conv2d, sparse: type[SparseModule]) -> list[str]:
    """The attributes a user has put on a dense layer under names that its sparse twin uses itself."""
    dense = type(module)
    return [
        name
        for name in vars(module)
        if name not in DENSE_ATTRIBUTES[dense]
        and (name in sparse.own_attributes or (hasattr(sparse, name) and not hasattr(dense, name)))
    ]


def swap(model: nn.Module, swaps: Mapping[int, nn.Module]) -> None:
    """Puts each new module, by the old one's identity, wherever that is registered."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in swaps:
                parent._modules[name] = swaps[id(child)]
