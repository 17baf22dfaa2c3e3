"""Which layers of a model can be made sparse, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparsekern.formats.checks import describe
from sparsekern.nn.checks import check_unwrapped, near_names
from sparsekern.nn.module import SparseModule
from sparsekern.nn.reasons import (
    DENSE_TYPES,
    READ_PAST_FORWARD,
    is_read_past_forward,
    own_matrices,
    why_dense,
)

FilterFn = Callable[[nn.Module, str], bool]


@dataclass
class Found:
    """One weight-bearing module, every name it has in the model, and why it stays as it is (None: it
    converts)."""

    module: nn.Module
    names: list[str] = field(default_factory=list)
    reason: str | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The weight's shape, without computing a parametrized weight; None when it is not known yet."""
        module = self.module
        if isinstance(module, SparseModule):
            return module.weight_shape
        if any(is_lazy(parameter) for parameter in module._parameters.values()):
            return None
        if isinstance(module, nn.Linear):
            return (module.out_features, module.in_features)
        if isinstance(module, nn.Conv2d):
            return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        matrices = own_matrices(module).values()
        return max((tuple(p.shape) for p in matrices), key=lambda shape: torch.Size(shape).numel())


def check_model(model: Any) -> None:
    """What both directions ask of a model: it can replace its layers, and no wrapper holds their weights."""
    rule = "model must be a module that contains layers"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{rule}, got {describe(model)}")
    if isinstance(model, SparseModule):
        raise TypeError(
            f"{rule}, got a single {type(model).__name__}, already sparse; use its to_dense_module()"
        )
    check_unwrapped(model)


def check_replaceable(model: nn.Module, types: Mapping[type[nn.Module], type[SparseModule]]) -> None:
    """Raise for a single layer, which one of `types` would have to take the place of."""
    if type(model) in types:
        raise TypeError(
            f"model must be a module that contains layers, got a single {type(model).__name__}, which cannot"
            f" replace itself; use {types[type(model)].__name__}.from_dense"
        )


def survey(
    model: nn.Module,
    exclude: Iterable[str],
    filter_fn: FilterFn | None,
    only: Collection[str] | None,
    unsuited: Callable[[nn.Module], str | None] = lambda module: None,
) -> list[Found]:
    """Every module with a weight of two or more dimensions, in module order, each once.

    `only` holds the names that masks are given for; None means that all convertible layers are meant.
    `unsuited` says why the kind of sparsity that is asked for does not suit a module, None where it does.
    """
    found = _weight_bearing(model)
    patterns = _check_exclude(
        exclude, [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    )
    read = {
        id(child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if is_read_past_forward(parent, name)
    }
    for entry in found:
        entry.reason = (
            _already_sparse(entry.module)
            or _excluded(entry.names, patterns)
            or (READ_PAST_FORWARD if id(entry.module) in read else None)
            or why_dense(entry.module)
            or unsuited(entry.module)
            or (
                "filter_fn returned False"
                if filter_fn is not None and not filter_fn(entry.module, entry.name)
                else None
            )
        )
    _check_masked_names(found, only)
    _settle_ties(model, found, only)
    return found


def check_any(model: nn.Module, found: list[Found]) -> None:
    """Nothing to convert is a mistake, unless the layers are sparse already, as on a second call."""
    if any(entry.reason is None or isinstance(entry.module, SparseModule) for entry in found):
        return
    why = "; ".join(f"{entry.name}: {entry.reason}" for entry in found[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    raise ValueError(
        f"model must have an nn.Linear or nn.Conv2d to convert, got {type(model).__name__} with none"
        + (f" ({why}{more})" if found else "")
    )


def tied_groups(found: list[Found]) -> list[list[Found]]:
    """The layers to convert, in module order; those that share one weight together."""
    groups: dict[int, list[Found]] = {}
    for entry in found:
        if entry.reason is None:
            groups.setdefault(id(entry.module.weight), []).append(entry)
    return list(groups.values())


def excluded_names(model: nn.Module, exclude: Iterable[str]) -> set[str]:
    """The names of all modules that `exclude` matches, or that lie inside one it matches.

    Raises
    ------
    TypeError, ValueError
        For what is no list of names and glob patterns, and for a pattern that matches nothing.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    patterns = _check_exclude(exclude, names)
    return {name for name in names if _excluded([name], patterns)}


def _weight_bearing(model: nn.Module) -> list[Found]:
    found: dict[int, Found] = {}
    inside = tuple(
        f"{name}.parametrizations."
        for name, module in model.named_modules(remove_duplicate=False)
        if parametrize.is_parametrized(module)
    )
    for name, module in model.named_modules(remove_duplicate=False):
        bears = isinstance(module, (*DENSE_TYPES, SparseModule)) or own_matrices(module)
        bears = bears or any(is_lazy(parameter) for parameter in module._parameters.values())
        if bears and not name.startswith(inside):
            # The root's own parameters are listed under its class, it has no name.
            found.setdefault(id(module), Found(module)).names.append(name or type(module).__name__)
    return list(found.values())


def _already_sparse(module: nn.Module) -> str | None:
    return "already sparse" if isinstance(module, SparseModule) else None


def _check_exclude(exclude: Iterable[str], names: list[str]) -> list[str]:
    rule = "exclude must be names or glob patterns of modules"
    if not isinstance(exclude, Iterable):
        raise TypeError(f"{rule}, got {describe(exclude)}")
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{rule}, got {describe(pattern)}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{rule}, got {pattern!r}, which matches none{near_names(pattern, names)}")
    return patterns


def _excluded(names: list[str], patterns: list[str]) -> str | None:
    """A pattern that names a module excludes everything inside it too."""
    for name in names:
        parts = name.split(".")
        enclosing = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        for pattern in patterns:
            if any(fnmatchcase(part, pattern) for part in enclosing):
                return f"excluded by {pattern!r}"
    return None


def _check_masked_names(found: list[Found], only: Collection[str] | None) -> None:
    by_name = {name: entry for entry in found for name in entry.names}
    for name in only or ():
        if name not in by_name:
            convertible = [n for n, entry in by_name.items() if entry.reason is None]
            raise ValueError(
                f"masks must be for names of layers, got {name!r}{near_names(str(name), convertible)}"
            )
        if by_name[name].reason is not None:
            raise ValueError(f"masks must be for layers that convert, got {name!r}: {by_name[name].reason}")


def _settle_ties(model: nn.Module, found: list[Found], only: Collection[str] | None) -> None:
    """Layers without a mask stay dense, and so do layers whose weight something that stays dense uses too."""
    owners = _owners(model)
    by_module = {id(entry.module): entry for entry in found}
    for entry in found:
        if entry.reason is not None or only is None:
            continue
        users = [
            by_module[id(module)] for module, _ in owners[id(entry.module.weight)] if id(module) in by_module
        ]
        if not any(name in only for user in users for name in user.names):
            entry.reason = "no mask given"
    for entry in found:
        if entry.reason is not None:
            continue
        for module, name in owners[id(entry.module.weight)]:
            other = by_module.get(id(module))
            if other is None or type(module) is not type(entry.module) or other.reason is not None:
                entry.reason = f"its weight is tied to {name}, which stays dense" + _untie(module)
                if only is not None and any(n in only for n in entry.names):
                    raise ValueError(
                        f"masks must be for layers that convert, got {entry.name!r}: {entry.reason}"
                    )
                break


def _untie(owner: nn.Module) -> str:
    """The way out where an embedding holds the weight: what else stays dense has a reason of its own."""
    if not isinstance(owner, nn.Embedding):
        return ""
    return "; give it a Parameter of its own first (in transformers, tie_word_embeddings=False)"


def _owners(model: nn.Module) -> Mapping[int, list[tuple[nn.Module, str]]]:
    """For every Parameter, by identity, the modules that hold it and its name there."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                full = f"{prefix}.{name}" if prefix else name
                owners.setdefault(id(parameter), []).append((module, full))
    return owners
