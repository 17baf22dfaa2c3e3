"""`prune_`: one-shot pruning by magnitude, of a model and of the optimizer that trains it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.pattern import Pattern
from sparsekern.methods.arguments import check_optimizer
from sparsekern.methods.at_init.selection import warn_of_emptied
from sparsekern.methods.compact import check_compactable, compact_layers, replace_parameter
from sparsekern.methods.driven_layer import check_unmoved
from sparsekern.methods.magnitude import (
    Prunable,
    check_options,
    prunable_layers,
    select_by_magnitude,
)
from sparsekern.methods.optimizer_state import check_holds_any, check_states
from sparsekern.nn import LayerReport, SparseLayer, SparsifyReport, sparsify_
from sparsekern.nn.conversion import pattern_figures
from sparsekern.nn.distributions import Distribution

__all__ = ["prune_"]


def prune_(
    model: nn.Module,
    sparsity: float,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    scope: str = "layer",
    distribution: Distribution = "uniform",
    exclude: Iterable[str] = (),
) -> SparsifyReport:
    """Removes the weights of smallest magnitude, in place, at once; the rest can be trained on.

    The masks are those of `magnitude_masks`. Dense layers become compact sparse ones, and sparse layers lose
    what is pruned now: weights, gradients and optimizer state have nnz size afterwards. The weights that stay
    keep their values, gradients, momenta and second moments exactly, so training goes on with the same
    optimizer, schedulers and all. EMA copies, DDP and compiled graphs know the old Parameters: make them
    anew.

    Batch normalization keeps the statistics of the network before; `recalibrate_batch_norm_` estimates them
    anew.

    Parameters
    ----------
    model : torch.nn.Module
        Dense or sparse, on a pattern.
    sparsity : float
        Fraction of zeros in [0, 1) over all layers that are pruned, exact.
    optimizer : torch.optim.Optimizer, optional
        The one that trains the model; call this between its steps. Without it, make the optimizer afterwards.
    scope, distribution, exclude :
        As in `magnitude_masks`.

    Returns
    -------
    SparsifyReport
        Its ``str()`` is a table of the layers.

    Raises
    ------
    TypeError, ValueError
        For what `magnitude_masks` refuses; an optimizer that is none, holds no weight of the model, or
        whose state for one is not per element; layers that a dynamic method moves. Nothing has been changed
        then.
    FloatingPointError
        When a weight is NaN or infinite: names the layer.
    """
    sparsity = check_options(sparsity, scope, distribution)
    check_optimizer(optimizer, optional=True)
    layers = prunable_layers(model, exclude)
    _check_movable(model, layers, optimizer)
    masks, emptied = select_by_magnitude(layers, sparsity, scope, distribution)
    if emptied:
        advice = "A lower sparsity or scope='layer' leaves more"
        warn_of_emptied("magnitude", sparsity, emptied, advice)
    patterns = {name: Pattern.from_mask(mask) for name, mask in masks.items()}
    _convert_dense(model, layers, patterns, optimizer)
    _shrink_sparse(model, layers, patterns, optimizer)
    return _report(model, patterns)


def _check_movable(model: nn.Module, layers: list[Prunable], optimizer: torch.optim.Optimizer | None) -> None:
    sparse = {layer.name: layer.module for layer in layers if isinstance(layer.module, SparseLayer)}
    check_unmoved(sparse)
    check_compactable(model, sparse)
    if optimizer is not None:
        check_holds_any(optimizer, {layer.name: layer.parameter for layer in layers})
        for layer in layers:
            check_states(optimizer, layer.parameter, layer.name)


def _convert_dense(
    model: nn.Module,
    layers: list[Prunable],
    patterns: Mapping[str, Pattern],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    dense = {layer.name: layer.parameter for layer in layers if not isinstance(layer.module, SparseLayer)}
    if not dense:
        return
    sparsify_(model, masks={name: patterns[name] for name in dense})
    for name, old in dense.items():
        new, pattern = model.get_submodule(name).stored_weight, patterns[name]
        if old.grad is not None:
            new.grad = pattern.pack(old.grad)
        if optimizer is not None:
            replace_parameter(optimizer, old, new, pattern)


def _shrink_sparse(
    model: nn.Module,
    layers: list[Prunable],
    patterns: Mapping[str, Pattern],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    masked: set[int] = set()
    for layer in layers:
        if not isinstance(layer.module, SparseLayer):
            continue
        old, new = layer.module.pattern, patterns[layer.name]
        if layer.module.storage == "masked":
            masked.add(id(layer.parameter))
        elif optimizer is not None:
            _transfer_state(optimizer, layer.parameter, old, new)
        layer.module.set_pattern(new, resize=True)
    sparse = {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}
    # All layers that share a weight become compact together.
    compact_layers({n: m for n, m in sparse.items() if id(m.stored_weight) in masked}, optimizer)


def _transfer_state(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, old: Pattern, new: Pattern
) -> None:
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape:
            state[key] = old.transfer(value, new)


def _report(model: nn.Module, patterns: Mapping[str, Pattern]) -> SparsifyReport:
    """Of the layers that were pruned, those that share a weight included."""
    first = {id(model.get_submodule(name).stored_weight): name for name in patterns}
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseLayer) and id(module.stored_weight) in first:
            names.setdefault(id(module), []).append(name)
    reports = []
    for own, *aliases in names.values():
        layer = model.get_submodule(own)
        holder = first[id(layer.stored_weight)]
        reports.append(
            LayerReport(
                name=own,
                aliases=tuple(aliases),
                tied_to=None if own == holder else holder,
                **pattern_figures(layer, None),
            )
        )
    return SparsifyReport(tuple(reports))
