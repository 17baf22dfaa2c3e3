"""Masks by magnitude, of layers that are dense and of layers that are sparse already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import check_shape, check_sparsity, check_strided
from sparsekern.methods.at_init.selection import check_finite, check_scope, keep_largest, warn_of_emptied
from sparsekern.nn import SparseLayer
from sparsekern.nn.conversion import PatternConversion
from sparsekern.nn.distributions import Distribution, layer_counts
from sparsekern.nn.survey import check_any, check_model, check_replaceable, excluded_names, survey

__all__ = [
    "Prunable",
    "as_list",
    "check_options",
    "magnitude_masks",
    "prunable_layers",
    "select_by_magnitude",
]


@dataclass(frozen=True)
class Prunable:
    """A weight that can lose positions, under the name of the first layer that uses it.

    Attributes
    ----------
    name : str
    module : nn.Module
        An ``nn.Linear``, ``nn.Conv2d`` or `SparseLayer`.
    """

    name: str
    module: nn.Module

    @property
    def parameter(self) -> nn.Parameter:
        """What is stored of the weight."""
        return self.module.stored_weight if isinstance(self.module, SparseLayer) else self.module.weight

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        dense = not isinstance(self.module, SparseLayer)
        return tuple(self.parameter.shape if dense else self.module.weight_shape)

    def magnitudes(self) -> Tensor:
        """``|w|`` in the dense weight's shape."""
        weight = self.module.to_dense() if isinstance(self.module, SparseLayer) else self.module.weight
        return weight.detach().abs()

    def mask(self) -> Tensor:
        """True where there is a weight to lose: bool, of the dense weight's shape."""
        if isinstance(self.module, SparseLayer):
            return self.module.mask
        return torch.ones(self.shape, dtype=torch.bool, device=self.parameter.device)


def magnitude_masks(
    model: nn.Module,
    sparsity: float,
    *,
    scope: str = "layer",
    distribution: Distribution = "uniform",
    exclude: Iterable[str] = (),
) -> dict[str, Tensor]:
    r"""Masks that keep the weights of largest magnitude, for `prune_`, `rewind_` or ``sparsify_(masks=...)``.

    .. math:: \mathrm{kept} = \mathrm{round}\bigl((1 - \mathrm{sparsity}) \cdot \mathrm{numel}\bigr)

    over all layers, exactly. Ties go to the earlier layer and then to the lower index of the flattened
    weight. What a sparse layer has pruned stays pruned, counts as pruned, and is not ranked, so a call at a
    higher sparsity prunes on.

    Parameters
    ----------
    model : torch.nn.Module
        Left unchanged. Layers are those that `sparsify_` would convert, and those on a pattern already
        (`SparseLinear`, `SparseConv2d`); 2:4 layers are left alone.
    sparsity : float
        Fraction of zeros in [0, 1) over all these layers.
    scope : str
        ``"layer"``: each layer has its own number of weights. ``"global"``: the weights of all layers
        compete; a layer that would lose all of them keeps its largest, with a warning.
    distribution : str
        The numbers for ``scope="layer"``: ``"uniform"``, ``"er"`` or ``"erk"``, see `layer_sparsities`. A
        layer that has fewer weights left keeps all of them, and the others share the rest.
    exclude : names or glob patterns
        Layers to leave as they are, which do not count.

    Returns
    -------
    dict of str to Tensor
        By layer name, bool, of the weight's shape and on its device. A weight that several layers share is
        there once, under the first one's name.

    Raises
    ------
    TypeError, ValueError
        For arguments out of range, a sparsity below what the layers have already, a model without such a
        layer or that `sparsify_` refuses, and names that match nothing.
    FloatingPointError
        When a weight is NaN or infinite: names the layer.
    """
    sparsity = check_options(sparsity, scope, distribution)
    masks, emptied = select_by_magnitude(prunable_layers(model, exclude), sparsity, scope, distribution)
    if emptied:
        advice = "A lower sparsity or scope='layer' leaves more"
        warn_of_emptied("magnitude", sparsity, emptied, advice)
    return masks


def check_options(sparsity: Any, scope: Any, distribution: Any) -> float:
    """The checked sparsity; raise for what `magnitude_masks` does not take."""
    sparsity = check_sparsity(sparsity)
    check_scope(scope, distribution)
    return sparsity


def prunable_layers(model: Any, exclude: Iterable[str]) -> list[Prunable]:
    """The weights of `magnitude_masks`, in module order.

    Raises
    ------
    TypeError, ValueError
        For a model or names that it refuses.
    """
    check_model(model)
    check_replaceable(model, PatternConversion.types)
    exclude = as_list(exclude)
    excluded = excluded_names(model, exclude)
    found = survey(model, exclude, None, None)
    check_any(model, found)
    layers: dict[int, Prunable] = {}
    for entry in found:
        sparse = isinstance(entry.module, SparseLayer) and not excluded.intersection(entry.names)
        if sparse or entry.reason is None:
            layer = Prunable(entry.name, entry.module)
            layers.setdefault(id(layer.parameter), layer)
    if not layers:
        raise ValueError(
            f"model must have a layer to prune, got {type(model).__name__}, whose layers are 2:4 or excluded"
        )
    for layer in layers.values():
        check_strided(layer.parameter, f"the weight of layer {layer.name!r}")
        check_shape(layer.shape, f"the weight's shape of layer {layer.name!r}")
    return list(layers.values())


def as_list(exclude: Any) -> Any:
    """Names that can be gone through more than once; what is none is left for its check."""
    if isinstance(exclude, str) or not isinstance(exclude, Iterable):
        return exclude
    return list(exclude)


@torch.no_grad()
def select_by_magnitude(
    layers: list[Prunable], sparsity: float, scope: str, distribution: Distribution
) -> tuple[dict[str, Tensor], list[str]]:
    """The masks of `magnitude_masks`, and the layers that would have lost every weight."""
    masks = {layer.name: layer.mask() for layer in layers}
    scores = {layer.name: layer.magnitudes() for layer in layers}
    check_finite(scores, "magnitude", "give the layer finite weights")
    left = {name: int(mask.sum()) for name, mask in masks.items()}
    shapes = [layer.shape for layer in layers]
    counts = layer_counts(shapes, sparsity, distribution, list(left.values()))
    if scope == "global":
        pools = {tuple(name for name in masks if left[name]): sum(counts)}
    else:
        pools = {(name,): count for name, count in zip(masks, counts) if count}
    return _keep(pools, scores, masks)


def _keep(
    pools: Mapping[tuple[str, ...], int], scores: Mapping[str, Tensor], masks: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Of each pool so many; layers in none have nothing to lose."""
    emptied = []
    for names, count in pools.items():
        if names:
            kept, empty = keep_largest(scores, {name: masks[name] for name in names}, count)
            masks = masks | kept
            emptied += empty
    return masks, emptied
