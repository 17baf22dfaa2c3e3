"""Swapping the Linear and Conv2d layers of a model for sparse ones, and back, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import check_sparsity
from sparsekern.formats.pattern import Pattern
from sparsekern.init import INITIALIZERS
from sparsekern.nn.base import SparseLayer
from sparsekern.nn.checks import (
    STORAGES,
    as_pattern,
    check_choice,
    check_positive_int,
    describe,
)
from sparsekern.nn.distributions import DISTRIBUTIONS, Distribution, layer_sparsities
from sparsekern.nn.report import LayerReport, SparsifyReport
from sparsekern.nn.survey import SPARSE_TYPES, FilterFn, Found, survey

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


def sparsify_(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    distribution: Distribution = "uniform",
    pattern: str = "unstructured",
    block_size: int = 64,
    storage: str = "compact",
    init: str = "keep",
    masks: Mapping[str, Tensor | Pattern] | None = None,
    exclude: Iterable[str] = (),
    filter_fn: FilterFn | None = None,
    generator: torch.Generator | None = None,
) -> SparsifyReport:
    """Replaces ``nn.Linear`` by `SparseLinear` and ``nn.Conv2d`` by `SparseConv2d`, in place.

    Call it before the optimizer and any DDP wrapper are made: weights become new Parameters. Biases stay the
    same Parameters; device, dtype, ``requires_grad``, training mode, forward and backward hooks and
    attributes set on the module are kept. Only the exact two types are converted; every other layer with a
    weight of two or more dimensions is named in the report with the reason. A module used in several places
    stays shared, and two modules that share a weight go on sharing it, with one pattern; a weight shared with
    something that stays dense (an embedding) stays dense. A second call converts what is still dense and
    leaves sparse layers alone.

    Parameters
    ----------
    model : torch.nn.Module
        A module that contains layers; a single layer cannot replace itself, use `SparseLinear.from_dense`.
    sparsity : float
        Fraction of zeros in [0, 1) over the layers converted by this call. Exactly one of `sparsity` and
        `masks`.
    distribution : str
        ``"uniform"``, ``"er"`` or ``"erk"``, see `layer_sparsities`; the total is exact.
    pattern : str
        ``"unstructured"``, or ``"block"``: whole `block_size` x `block_size` blocks, their number rounded.
    storage : str
        ``"compact"`` or ``"masked"``, see `SparseLinear`.
    init : str
        ``"keep"``: the weights at active positions; or ``"dense"``, ``"per_layer"``, ``"per_neuron"``, see
        `sparsekern.init`. Biases are kept in any case.
    masks : mapping of str to bool tensor or Pattern
        By layer name; layers without one stay dense.
    exclude : names or glob patterns
        Layers to leave dense; a pattern that matches a containing module excludes all of it.
    filter_fn : callable (module, name) -> bool
        Called for every layer that would convert; False leaves it dense.
    generator : torch.Generator, optional
        Source of patterns and initial weights, drawn from in module order.

    Returns
    -------
    SparsifyReport
        Its ``str()`` is a table of every layer.

    Raises
    ------
    TypeError, ValueError
        For arguments out of range, names that match nothing, masks that do not fit, a model with nothing to
        convert or one wrapped in DDP. Nothing has been changed then.
    """
    _check_arguments(model, sparsity, distribution, pattern, block_size, storage, init, masks)
    found = survey(model, exclude, filter_fn, None if masks is None else list(masks))
    _check_any(model, found)
    groups = _tied_groups(found)
    if masks is not None:
        asked: list[float | None] = [None] * len(groups)
        patterns = [_mask_of(group, masks) for group in groups]
    else:
        shapes = [tuple(group[0].module.weight.shape) for group in groups]
        asked = list(layer_sparsities(shapes, sparsity, distribution)) if groups else []
        patterns = [None] * len(groups)

    swaps: dict[int, SparseLayer] = {}
    reports: dict[int, LayerReport] = {}
    for group, share, ready in zip(groups, asked, patterns, strict=True):
        weight = group[0].module.weight
        if ready is None:
            block = {"block_size": block_size} if pattern == "block" else {}
            ready = Pattern.random(tuple(weight.shape), share, generator=generator, **block)
        for entry in group:
            layer = _sparse_twin(entry.module, ready, storage)
            if entry is group[0]:
                first = layer
                if init == "keep":
                    layer.write_dense(weight)
                else:
                    INITIALIZERS[init](layer, generator=generator)
            else:
                layer.tie_weight(first)
            swaps[id(entry.module)] = layer
            reports[id(entry.module)] = _converted(entry, layer, share, group[0].name)
    _swap(model, swaps)
    _leave_fused_paths(model)
    return SparsifyReport(tuple(reports.get(id(entry.module)) or _left(entry) for entry in found))


def densify_(model: nn.Module) -> list[str]:
    """Replaces every sparse layer by the ``nn.Linear`` or ``nn.Conv2d`` that computes the same, in place.

    The weight is a new Parameter with 0 at inactive positions; what `sparsify_` keeps is kept here too, ties
    included.

    Returns
    -------
    list of str
        The names of the layers converted, empty when none was sparse.

    Raises
    ------
    TypeError
        When the model is itself a sparse layer: use its ``to_dense_module()``. Nothing has been changed then.
    """
    if not isinstance(model, nn.Module) or isinstance(model, SparseLayer):
        raise TypeError(
            f"model: expected a module that contains layers, got {describe_module(model)}"
            + ("; use its to_dense_module()" if isinstance(model, SparseLayer) else "")
        )
    swaps: dict[int, nn.Module] = {}
    weights: dict[int, nn.Parameter] = {}
    names = []
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            dense = layer.to_dense_module()
            dense.weight = weights.setdefault(id(layer.stored_weight), dense.weight)
            dense.register_parameter("bias", layer.bias)
            _carry(layer, dense)
            swaps[id(layer)] = dense
            names.append(name)
    _swap(model, swaps)
    return names


def describe_module(model: Any) -> str:
    return f"a single {type(model).__name__}" if isinstance(model, nn.Module) else describe(model)


def _check_arguments(
    model: Any,
    sparsity: Any,
    distribution: Any,
    pattern: Any,
    block_size: Any,
    storage: Any,
    init: Any,
    masks: Any,
) -> None:
    if isinstance(model, SparseLayer):
        raise TypeError(
            f"model: expected a module that contains layers, got {type(model).__name__}, already sparse"
        )
    if not isinstance(model, nn.Module) or type(model) in SPARSE_TYPES:
        twin = SPARSE_TYPES.get(type(model))
        raise TypeError(
            f"model: expected a module that contains layers, got {describe_module(model)}"
            + (f", which cannot replace itself; use {twin.__name__}.from_dense" if twin else "")
        )
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise ValueError(
            "model: expected one that is not wrapped in DistributedDataParallel yet: sparsify it before"
        )
    if (sparsity is None) == (masks is None):
        raise ValueError(
            f"expected exactly one of sparsity and masks, got {'none' if masks is None else 'both'}"
        )
    if sparsity is not None:
        check_sparsity(sparsity)
    elif not isinstance(masks, Mapping):
        raise TypeError(f"masks: expected a mapping from layer name to mask, got {describe(masks)}")
    check_choice(distribution, DISTRIBUTIONS, "distribution")
    check_choice(pattern, ("unstructured", "block"), "pattern")
    check_positive_int(block_size, "block_size")
    check_choice(storage, STORAGES, "storage")
    check_choice(init, ("keep", *INITIALIZERS), "init")


def _check_any(model: nn.Module, found: list[Found]) -> None:
    """Nothing to convert is a mistake, unless the layers are sparse already, as on a second call."""
    if any(entry.reason is None or isinstance(entry.module, SparseLayer) for entry in found):
        return
    why = "; ".join(f"{entry.name}: {entry.reason}" for entry in found[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    raise ValueError(
        f"model: expected at least one nn.Linear or nn.Conv2d to convert, {type(model).__name__} has none"
        + (f" ({why}{more})" if found else "")
    )


def _tied_groups(found: list[Found]) -> list[list[Found]]:
    """The layers to convert, in module order; those that share one weight together."""
    groups: dict[int, list[Found]] = {}
    for entry in found:
        if entry.reason is None:
            groups.setdefault(id(entry.module.weight), []).append(entry)
    return list(groups.values())


def _mask_of(group: list[Found], masks: Mapping[str, Tensor | Pattern]) -> Pattern:
    """The one pattern given for a group, under any of its names; several must agree."""
    shape = tuple(group[0].module.weight.shape)
    given = [name for entry in group for name in entry.names if name in masks]
    patterns = [as_pattern(masks[name], shape, f"masks[{name!r}]") for name in given]
    for name, other in zip(given[1:], patterns[1:], strict=True):
        if not torch.equal(other.to_mask().cpu(), patterns[0].to_mask().cpu()):
            raise ValueError(
                f"masks: expected the same mask for {given[0]!r} and {name!r}, which share a weight, got two"
            )
    return patterns[0]


def _sparse_twin(module: nn.Module, pattern: Pattern, storage: str) -> SparseLayer:
    layer = SPARSE_TYPES[type(module)].like(module, pattern, storage=storage)
    layer.register_parameter("bias", module.bias)
    _carry(module, layer)
    return layer


def _carry(old: nn.Module, new: nn.Module) -> None:
    """Hands over hooks and the attributes that a user has set on the instance."""
    for name in HOOKS:
        if name in vars(old):
            vars(new)[name] = vars(old)[name]
    plain = {**vars(nn.Linear(1, 1, device="meta")), **vars(nn.Conv2d(1, 1, 1, device="meta"))}
    known = {*plain, *vars(new), "storage", "init", "_topology"}
    for name, value in vars(old).items():
        if name not in known:
            vars(new)[name] = value


def _swap(model: nn.Module, swaps: Mapping[int, nn.Module]) -> None:
    """Puts each new module wherever the old one is registered, which may be in several places."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in swaps:
                parent._modules[name] = swaps[id(child)]


def _leave_fused_paths(model: nn.Module) -> None:
    """Turns off PyTorch's fused inference of encoder layers that hold sparse layers.

    It reads ``linear1.weight`` and ``linear2.weight`` itself, past the sparse layers' forward.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            if any(isinstance(child, SparseLayer) for child in module.children()):
                module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            if any(isinstance(child, SparseLayer) for child in module.layers.modules()):
                module.use_nested_tensor = False


def _converted(entry: Found, layer: SparseLayer, asked: float | None, first: str) -> LayerReport:
    pattern, weight = layer.pattern, layer.stored_weight
    fan_in = pattern.fan_in()
    return LayerReport(
        name=entry.name,
        shape=tuple(pattern.shape),
        aliases=tuple(entry.names[1:]),
        tied_to=None if entry.name == first else first,
        sparsity_asked=asked,
        sparsity=pattern.sparsity,
        nnz=pattern.nnz,
        numel=pattern.numel,
        fan_in_min=int(fan_in.min()),
        fan_in_mean=float(fan_in.double().mean()),
        value_bytes=weight.numel() * weight.element_size(),
        pattern_bytes=pattern.nbytes,
        dense_bytes=pattern.numel * weight.element_size(),
    )


def _left(entry: Found) -> LayerReport:
    return LayerReport(
        name=entry.name, shape=entry.shape, aliases=tuple(entry.names[1:]), reason=entry.reason
    )
