"""Swapping the Linear and Conv2d layers of a model for sparse ones, and back, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import check_choice, check_generator, describe
from sparsekern.formats.pattern import Pattern
from sparsekern.nn.attributes import carry, swap, taken_names
from sparsekern.nn.conversion import Conversion, PatternConversion
from sparsekern.nn.distributions import Distribution
from sparsekern.nn.fused import leave_fused_paths, restore_fused_paths
from sparsekern.nn.int8 import TwoFourLinearInt8
from sparsekern.nn.materialize import Materialization, ResetFn, check_device, tensors_on_meta
from sparsekern.nn.module import SparseModule
from sparsekern.nn.report import LayerReport, SparsifyReport
from sparsekern.nn.survey import (
    FilterFn,
    Found,
    check_any,
    check_model,
    check_replaceable,
    survey,
    tied_groups,
)
from sparsekern.nn.two_four_conversion import TwoFourConversion

PATTERNS = ("unstructured", "block", "2:4")
# The options that only `TwoFourConversion` has, with their defaults.
TWO_FOUR = {"method": "sr_ste", "transposable": False, "refresh_every": 1, "decay": 2e-4, "dense_below": 0}


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
    device: torch.device | str | None = None,
    reset_fn: ResetFn | None = None,
    method: str = "sr_ste",
    transposable: bool = False,
    refresh_every: int = 1,
    decay: float = 2e-4,
    dense_below: int = 0,
) -> SparsifyReport:
    """Replaces ``nn.Linear`` by `SparseLinear` and ``nn.Conv2d`` by `SparseConv2d`, in place.

    With ``pattern="2:4"``, by `TwoFourLinear` and `TwoFourConv2d`.

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
        `masks`; neither for ``pattern="2:4"``, where it is one half.
    distribution : str
        ``"uniform"``, ``"er"`` or ``"erk"``, see `layer_sparsities`; the total is exact.
    pattern : str
        ``"unstructured"``; ``"block"``: whole `block_size` x `block_size` blocks, their number rounded; or
        ``"2:4"``: two of every four neighbouring inputs of an output. Layers whose sizes do not fit 2:4 are
        left dense, and the report says so.
    block_size : int, optional
        32, 64 (the default) or 128, for ``pattern="block"`` only.
    storage : str
        ``"compact"`` or ``"masked"``, see `SparseLinear`.
    init : str
        ``"keep"``: the weights at active positions, for trained models and `masks`; a network that starts
        from random ones so, at high sparsity, hardly learns. Or ``"dense"``, ``"per_layer"``,
        ``"per_neuron"``, see `sparsekern.init`. Biases are kept in any case. For ``pattern="2:4"``, where
        all neurons have as many inputs, ``"keep"`` or ``"dense"``.
    masks : mapping of str to bool tensor or Pattern
        By layer name; layers without one stay dense.
    exclude : names or glob patterns
        Layers to leave dense; a pattern that matches a containing module excludes all of it.
    filter_fn : callable (module, name) -> bool
        Called for every layer that would convert; False leaves it dense.
    generator : torch.Generator, optional
        Source of patterns and initial weights, drawn from in module order.
    device : torch.device or str, optional
        For a model on the meta device, which is given its memory there: sparse layers at the size of their
        nonzeros, without a dense weight at any time, their biases 0; all else by its modules' own
        ``reset_parameters()``. What is not on meta stays where it is. Without it a model on meta stays there.
    reset_fn : callable (module), optional
        Called in place of ``reset_parameters()`` for every module that stays dense and has tensors on meta,
        inner ones first; writes all of them. For `device` only.
    method, transposable, refresh_every, decay, dense_below :
        As in `TwoFourLinear`, for ``pattern="2:4"`` only.

    Returns
    -------
    SparsifyReport
        Its ``str()`` is a table of every layer.

    Raises
    ------
    TypeError, ValueError
        For arguments out of range, names that match nothing, masks that do not fit, a model with nothing to
        convert or one wrapped in DDP, and a layer with an attribute that sparse layers use themselves; with
        `device`, for ``init="keep"``, which a model on meta has nothing for, and modules that nothing gives
        contents. Nothing has been changed then.
    """
    check_model(model)
    two_four = {
        "method": method,
        "transposable": transposable,
        "refresh_every": refresh_every,
        "decay": decay,
        "dense_below": dense_below,
    }
    if check_choice(pattern, PATTERNS, "pattern") == "2:4":
        _check_left_out(
            "where pattern='2:4', which zeroes half of every layer",
            sparsity=(sparsity, None),
            masks=(masks, None),
            distribution=(distribution, "uniform"),
            block_size=(block_size, None),
            storage=(storage, "compact"),
        )
        conversion: Conversion = TwoFourConversion(init, generator, **two_four)
    else:
        _check_left_out(
            "unless pattern='2:4'", **{name: (two_four[name], default) for name, default in TWO_FOUR.items()}
        )
        conversion = PatternConversion(
            sparsity,
            masks,
            distribution=distribution,
            pattern=pattern,
            block_size=block_size,
            storage=storage,
            init=init,
            generator=generator,
        )
    check_replaceable(model, conversion.types)
    _check_callables(filter_fn=filter_fn, reset_fn=reset_fn)
    check_generator(generator)
    found = survey(model, exclude, filter_fn, conversion.only, conversion.unsuited)
    check_any(model, found)
    _check_attributes(found, conversion)
    return _convert(model, found, conversion, _memory(model, found, conversion, device, reset_fn))


def _memory(
    model: nn.Module, found: list[Found], conversion: Conversion, device: Any, reset_fn: Any
) -> Materialization | None:
    """Checks what giving a model its memory asks for; None where nobody asks for it."""
    if device is None:
        _check_left_out("unless device is given", reset_fn=(reset_fn, None))
        return None
    conversion.device = check_device(device)
    if not any(tensors_on_meta(module) for module in model.modules()):
        raise ValueError(
            f"device must be left out for a model that is not on the meta device, got {str(device)!r}; to "
            "move one, call model.to()"
        )
    swapped = [entry.module for entry in found if entry.reason is None]
    if conversion.init == "keep" and any(module.weight.is_meta for module in swapped):
        ways = " or ".join(repr(init) for init in conversion.inits)
        raise ValueError(f"init must be {ways} for a model on meta, which has no weights to keep, got 'keep'")
    memory = Materialization(model, conversion.device, reset_fn, leave=swapped)
    memory.check(memory.modules)
    return memory


def _convert(
    model: nn.Module, found: list[Found], conversion: Conversion, memory: Materialization | None
) -> SparsifyReport:
    swaps: dict[int, SparseModule] = {}
    reports: dict[int, LayerReport] = {}
    groups = tied_groups(found)
    for group, choice in zip(groups, conversion.choices(groups), strict=True):
        for entry in group:
            layer = conversion.make(entry.module, choice)
            bias = entry.module.bias
            layer.register_parameter("bias", bias if memory is None else memory.zeros(bias))
            carry(entry.module, layer)
            if entry is group[0]:
                first = layer
                try:
                    conversion.fill(layer, entry.module, choice)
                except ValueError as error:
                    raise ValueError(
                        f"model must have weights to convert, got {entry.name!r}: {error}"
                    ) from error
            else:
                layer.tie_weight(first)
            swaps[id(entry.module)] = layer
            reports[id(entry.module)] = LayerReport(
                name=entry.name,
                aliases=tuple(entry.names[1:]),
                tied_to=None if entry is group[0] else group[0].name,
                **conversion.figures(layer, choice),
            )
    if memory is not None:
        memory.fill(memory.modules)
    swap(model, swaps)
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
        if isinstance(layer, TwoFourLinearInt8):
            dense = layer.to_dense_module()
            carry(layer, dense)
            swaps[id(layer)] = dense
            names.append(name)
        elif isinstance(layer, SparseModule):
            dense = layer.to_dense_module()
            dense.weight = weights.setdefault(id(layer.stored_weight), dense.weight)
            dense.register_parameter("bias", layer.bias)
            carry(layer, dense)
            swaps[id(layer)] = dense
            names.append(name)
    swap(model, swaps)
    restore_fused_paths(model)
    return names


def _check_left_out(rule: str, **options: tuple[Any, Any]) -> None:
    """Raise for an option that has no meaning here; each comes with its default."""
    for name, (value, default) in options.items():
        if value is not default and (default is None or value != default):
            raise ValueError(f"{name} must be left out {rule}, got {describe(value)}")


def _check_callables(**functions: Any) -> None:
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, got {describe(function)}")


def _check_attributes(found: list[Found], conversion: Conversion) -> None:
    for entry in found:
        if entry.reason is None and (
            taken := taken_names(entry.module, conversion.types[type(entry.module)])
        ):
            raise ValueError(
                f"model must not use attribute names that sparse layers use themselves, got {taken[0]!r} on "
                f"layer {entry.name!r}; rename it, or exclude the layer"
            )


def _left(entry: Found) -> LayerReport:
    return LayerReport(
        name=entry.name, shape=entry.shape, aliases=tuple(entry.names[1:]), reason=entry.reason
    )
