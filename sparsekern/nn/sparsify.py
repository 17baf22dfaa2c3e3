"""Swapping the Linear and Conv2d layers of a model for sparse ones, and back, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import check_choice, check_generator, check_sparsity, describe
from sparsekern.formats.layout import check_block_size
from sparsekern.formats.pattern import Pattern
from sparsekern.init import INITIALIZERS
from sparsekern.nn.attributes import carry, taken_names
from sparsekern.nn.base import SparseLayer
from sparsekern.nn.checks import STORAGES, as_pattern
from sparsekern.nn.distributions import DISTRIBUTIONS, Distribution, asked_sparsities, layer_sparsities
from sparsekern.nn.fused import leave_fused_paths, restore_fused_paths
from sparsekern.nn.report import LayerReport, SparsifyReport
from sparsekern.nn.survey import (
    SPARSE_TYPES,
    FilterFn,
    Found,
    check_any,
    check_model,
    check_replaceable,
    survey,
    tied_groups,
)


def sparsify_(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    distribution: Distribution = "uniform",
    pattern: str = "unstructured",
    block_size: int | None = None,
    storage: str = "compact",
    init: str = "keep",
    masks: Mapping[str, Tensor | Pattern] | None = None,
    exclude: Iterable[str] = (),
    filter_fn: FilterFn | None = None,
    generator: torch.Generator | None = None,
) -> SparsifyReport:
    """Replaces ``nn.Linear`` by `SparseLinear` and ``nn.Conv2d`` by `SparseConv2d`, in place.

    Call it before the optimizer and any DDP wrapper are made: weights become new Parameters, without the
    gradient and the attributes that the old ones may have had. Biases stay the same Parameters; device,
    dtype, ``requires_grad``, training mode, forward and backward hooks and attributes set on the module are
    kept. Only the exact two types are converted; every other layer with a weight of two or more dimensions is
    named in the report with the reason. A module used in several places stays shared, and two modules that
    share a weight go on sharing it, with one pattern; a weight shared with something that stays dense (an
    embedding) stays dense. A second call converts what is still dense and leaves sparse layers alone.

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
    block_size : int, optional
        32, 64 (the default) or 128, for ``pattern="block"`` only.
    storage : str
        ``"compact"`` or ``"masked"``, see `SparseLinear`.
    init : str
        ``"keep"``: the weights at active positions, for trained models and `masks`; a network that starts
        from random ones so, at high sparsity, hardly learns. Or ``"dense"``, ``"per_layer"``,
        ``"per_neuron"``, see `sparsekern.init`. Biases are kept in any case.
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
        convert or one wrapped in DDP, and a layer with an attribute that sparse layers use themselves.
        Nothing has been changed then.
    """
    check_model(model)
    check_replaceable(model)
    _check_source(sparsity, masks)
    check_choice(distribution, DISTRIBUTIONS, "distribution")
    block = _check_block(pattern, block_size)
    _check_random(masks, distribution=(distribution, "uniform"), pattern=(pattern, "unstructured"))
    check_choice(storage, STORAGES, "storage")
    check_choice(init, ("keep", *INITIALIZERS), "init")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be callable, got {describe(filter_fn)}")
    check_generator(generator)
    found = survey(model, exclude, filter_fn, None if masks is None else list(masks))
    check_any(model, found)
    _check_attributes(found)
    groups = tied_groups(found)
    shapes = [tuple(group[0].module.weight.shape) for group in groups]
    patterns = asked = shares = [None] * len(groups)
    if masks is not None:
        patterns = [_mask_of(group, masks) for group in groups]
    elif groups:
        asked = asked_sparsities(shapes, sparsity, distribution)
        shares = layer_sparsities(shapes, sparsity, distribution)

    swaps: dict[int, SparseLayer] = {}
    reports: dict[int, LayerReport] = {}
    for group, shape, quota, share, ready in zip(groups, shapes, asked, shares, patterns, strict=True):
        if ready is None:
            ready = Pattern.random(shape, share, generator=generator, block_size=block)
        for entry in group:
            layer = _sparse_twin(entry.module, ready, storage)
            if entry is group[0]:
                first = layer
                if init == "keep":
                    layer.write_dense(entry.module.weight)
                else:
                    INITIALIZERS[init](layer, generator=generator)
            else:
                layer.tie_weight(first)
            swaps[id(entry.module)] = layer
            reports[id(entry.module)] = _converted(entry, layer, quota, group[0].name)
    _swap(model, swaps)
    leave_fused_paths(model)
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
    TypeError, ValueError
        When the model is itself a sparse layer (use its ``to_dense_module()``) or wrapped in DDP. Nothing has
        been changed then.
    """
    check_model(model)
    swaps: dict[int, nn.Module] = {}
    weights: dict[int, nn.Parameter] = {}
    names = []
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            dense = layer.to_dense_module()
            dense.weight = weights.setdefault(id(layer.stored_weight), dense.weight)
            dense.register_parameter("bias", layer.bias)
            carry(layer, dense)
            swaps[id(layer)] = dense
            names.append(name)
    _swap(model, swaps)
    restore_fused_paths(model)
    return names


def _check_source(sparsity: Any, masks: Any) -> None:
    if masks is not None and not isinstance(masks, Mapping):
        raise TypeError(f"masks must be a mapping from layer name to mask, got {describe(masks)}")
    if masks is not None and not masks:
        raise ValueError(f"masks must be for at least one layer, got {describe(masks)}")
    if (sparsity is None) == (masks is None):
        came = "none" if masks is None else "both"
        raise ValueError(f"exactly one of sparsity and masks must be given, got {came}")
    if sparsity is not None:
        check_sparsity(sparsity)


def _check_block(pattern: Any, block_size: Any) -> int | None:
    """The size of blocks, None where there are none."""
    if check_choice(pattern, ("unstructured", "block"), "pattern") == "block":
        return check_block_size(64 if block_size is None else block_size)
    if block_size is not None:
        raise ValueError(f"block_size must be left out unless pattern='block', got {describe(block_size)}")
    return None


def _check_random(masks: Any, **options: tuple[str, str]) -> None:
    """What shapes random patterns has no meaning beside masks; each option comes with its default."""
    for name, (value, default) in options.items():
        if masks is not None and value != default:
            raise ValueError(f"{name} must be left out where masks are given, got {describe(value)}")


def _check_attributes(found: list[Found]) -> None:
    for entry in found:
        if entry.reason is None and (taken := taken_names(entry.module)):
            raise ValueError(
                f"model must not use attribute names that sparse layers use themselves, got {taken[0]!r} on "
                f"layer {entry.name!r}; rename it, or exclude the layer"
            )


def _mask_of(group: list[Found], masks: Mapping[str, Tensor | Pattern]) -> Pattern:
    """The one pattern given for a group, under any of its names; several must agree."""
    shape = tuple(group[0].module.weight.shape)
    given = [name for entry in group for name in entry.names if name in masks]
    patterns = [as_pattern(masks[name], shape, f"masks[{name!r}]") for name in given]
    for name, other in zip(given[1:], patterns[1:], strict=True):
        if not torch.equal(other.to_mask().cpu(), patterns[0].to_mask().cpu()):
            raise ValueError(
                f"masks must be the same for {given[0]!r} and {name!r}, which share a weight, got two"
            )
    return patterns[0]


def _sparse_twin(module: nn.Module, pattern: Pattern, storage: str) -> SparseLayer:
    layer = SPARSE_TYPES[type(module)].like(module, pattern, storage=storage)
    layer.register_parameter("bias", module.bias)
    carry(module, layer)
    return layer


def _swap(model: nn.Module, swaps: Mapping[int, nn.Module]) -> None:
    """Puts each new module wherever the old one is registered, which may be in several places."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in swaps:
                parent._modules[name] = swaps[id(child)]


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
