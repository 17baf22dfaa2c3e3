"""`Conversion`: what `sparsify_` makes of dense layers; and the one to layers on patterns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsekern.formats.checks import check_choice, check_sparsity, describe
from sparsekern.formats.layout import check_block_size
from sparsekern.formats.pattern import Pattern
from sparsekern.init import INITIALIZERS
from sparsekern.nn.base import SparseLayer
from sparsekern.nn.checks import STORAGES, as_pattern
from sparsekern.nn.conv import SparseConv2d
from sparsekern.nn.distributions import DISTRIBUTIONS, asked_sparsities, layer_sparsities
from sparsekern.nn.linear import SparseLinear
from sparsekern.nn.module import SparseModule
from sparsekern.nn.survey import Found

__all__ = ["Conversion", "PatternConversion", "pattern_figures"]


class Conversion:
    """From dense layers to sparse ones of a kind, with the options that were checked when it was made.

    Attributes
    ----------
    types : mapping from type to type
        The sparse layer for each dense one.
    only : list of str or None
        Names of the layers that are meant, where not all are.
    inits : tuple of str
        The initializations that need no dense weight, of which `init` may be one.
    device : torch.device or None
        Where layers go whose dense weight is on meta; there too if None.
    """

    types: ClassVar[Mapping[type[nn.Module], type[SparseModule]]]
    inits: ClassVar[tuple[str, ...]]
    init: str
    only: list[str] | None = None
    device: torch.device | None = None

    def unsuited(self, module: nn.Module) -> str | None:
        """Why a layer that could be sparse cannot be of this kind, None where it can."""
        return None

    def choices(self, groups: list[list[Found]]) -> Iterator[Any]:
        """What to make of each group of layers that share a weight; random ones are drawn when asked for."""
        raise NotImplementedError

    def make(self, module: nn.Module, choice: Any) -> SparseModule:
        """The layer that takes a dense one's place, its weight uninitialized."""
        raise NotImplementedError

    def device_for(self, module: nn.Module) -> torch.device:
        """Where the layer in a dense one's place is."""
        device = module.weight.device
        return self.device if self.device is not None and device.type == "meta" else device

    def fill(self, layer: SparseModule, module: nn.Module, choice: Any) -> None:
        """Give a layer that was made its weight."""
        raise NotImplementedError

    def figures(self, layer: SparseModule, choice: Any) -> dict[str, Any]:
        """What the report says of a layer, as attributes of `LayerReport`."""
        raise NotImplementedError


class PatternConversion(Conversion):
    """To `SparseLinear` and `SparseConv2d`. A choice is a pattern, and the sparsity it was asked for."""

    types = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}  # noqa: RUF012
    inits = tuple(INITIALIZERS)

    def __init__(
        self,
        sparsity: float | None,
        masks: Mapping[str, Tensor | Pattern] | None,
        *,
        distribution: str,
        pattern: str,
        block_size: int | None,
        storage: str,
        init: str,
        generator: torch.Generator | None,
    ) -> None:
        _check_source(sparsity, masks)
        check_choice(distribution, DISTRIBUTIONS, "distribution")
        self._block_size = _check_block(pattern, block_size)
        _check_random(masks, distribution=(distribution, "uniform"), pattern=(pattern, "unstructured"))
        self._storage = check_choice(storage, STORAGES, "storage")
        self.init = check_choice(init, ("keep", *self.inits), "init")
        self._sparsity, self._masks, self._distribution = sparsity, masks, distribution
        self._generator = generator
        self.only = None if masks is None else list(masks)

    def choices(self, groups: list[list[Found]]) -> Iterator[tuple[Pattern, float | None]]:
        if self._masks is not None:
            # All of them are checked before the first layer is made.
            yield from [(_mask_of(group, self._masks), None) for group in groups]
        elif groups:
            shapes = [tuple(group[0].module.weight.shape) for group in groups]
            asked = asked_sparsities(shapes, self._sparsity, self._distribution)
            shares = layer_sparsities(shapes, self._sparsity, self._distribution)
            for shape, quota, share in zip(shapes, asked, shares, strict=True):
                random = Pattern.random(shape, share, generator=self._generator, block_size=self._block_size)
                yield random, quota

    def make(self, module: nn.Module, choice: tuple[Pattern, float | None]) -> SparseLayer:
        return self.types[type(module)].like(
            module, choice[0], storage=self._storage, device=self.device_for(module)
        )

    def fill(self, layer: SparseLayer, module: nn.Module, choice: tuple[Pattern, float | None]) -> None:
        if self.init == "keep":
            layer.write_dense(module.weight)
        else:
            INITIALIZERS[self.init](layer, generator=self._generator)

    def figures(self, layer: SparseLayer, choice: tuple[Pattern, float | None]) -> dict[str, Any]:
        return pattern_figures(layer, choice[1])


def pattern_figures(layer: SparseLayer, asked: float | None) -> dict[str, Any]:
    """What a report says of a layer on a pattern, as attributes of `LayerReport`."""
    pattern, weight = layer.pattern, layer.stored_weight
    fan_in = pattern.fan_in()
    return {
        "shape": tuple(pattern.shape),
        "sparsity_asked": asked,
        "sparsity": pattern.sparsity,
        "nnz": pattern.nnz,
        "numel": pattern.numel,
        "fan_in_min": int(fan_in.min()),
        "fan_in_mean": float(fan_in.double().mean()),
        "value_bytes": weight.numel() * weight.element_size(),
        "pattern_bytes": pattern.nbytes,
        "dense_bytes": pattern.numel * weight.element_size(),
    }


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


def _check_block(pattern: str, block_size: Any) -> int | None:
    """The size of blocks, None where there are none."""
    if pattern == "block":
        return check_block_size(64 if block_size is None else block_size)
    if block_size is not None:
        raise ValueError(f"block_size must be left out unless pattern='block', got {describe(block_size)}")
    return None


def _check_random(masks: Any, **options: tuple[str, str]) -> None:
    """What shapes random patterns has no meaning beside masks; each option comes with its default."""
    for name, (value, default) in options.items():
        if masks is not None and value != default:
            raise ValueError(f"{name} must be left out where masks are given, got {describe(value)}")


def _mask_of(group: list[Found], masks: Mapping[str, Tensor | Pattern]) -> Pattern:
    """The one pattern given for a group, under any of its names; several must agree."""
    shape = tuple(group[0].module.weight.shape)
    given = [name for entry in group for name in entry.names if name in masks]
    patterns = [as_pattern(masks[name], shape, f"masks[{name!r}]") for name in given]
    for name, other in zip(given[1:], patterns[1:], strict=True):
        # Equal patterns need no masks, which are dense.
        if other != patterns[0] and not torch.equal(other.to_mask().cpu(), patterns[0].to_mask().cpu()):
            raise ValueError(
                f"masks must be the same for {given[0]!r} and {name!r}, which share a weight, got two"
            )
    return patterns[0]
