"""`DrivenLayer`: one sparse weight that a method moves, with all that has to move along."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.formats.checks import describe
from sparsekern.formats.layout import Layout
from sparsekern.formats.pattern import Pattern
from sparsekern.init import per_neuron_
from sparsekern.methods.blocks import block_size_of, positions_exchanged
from sparsekern.methods.gradient_watch import GradientWatch
from sparsekern.methods.optimizer_state import states_of
from sparsekern.methods.ranks import full, write_full
from sparsekern.methods.statistics import Explored
from sparsekern.nn import SparseLayer, TwoFourLayer

__all__ = ["DrivenLayer", "check_unmoved", "driven_layers", "driver_of"]

# The method that moves each weight, for as long as it lives.
_drivers: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()


class DrivenLayer:
    """A weight, its pattern, its gradient at all positions, and its optimizer's state.

    Attributes
    ----------
    name : str
        Of the first layer in the model that uses the weight.
    layer : SparseLayer
    parameter : nn.Parameter
        As the optimizer holds it.
    group : int
        Index of the optimizer's parameter group that it is in.
    initial_learning_rate : float
        The group's, before any schedule.
    block_size : int or None
        Of a pattern of whole blocks, which updates keep whole.
    watch : GradientWatch
    explored : Explored
    passes : int
        Contributions to the gradient in the last step that was watched: 1, or more where it is accumulated;
        0 if unknown.
    kept_on : Pattern or None
        The pattern when the watch last kept something of a gradient.
    followers : list of SparseLayer
        Of copies of the model, on the same pattern.
    memory : dict of str to Tensor
        What a method keeps for the layer from one step to the next.
    """

    def __init__(self, name: str, layer: SparseLayer, optimizer: torch.optim.Optimizer, group: int) -> None:
        self.name = name
        self.layer = layer
        self.parameter = layer.stored_weight
        self.group = group
        settings = optimizer.param_groups[group]
        self.initial_learning_rate = float(settings.get("initial_lr", settings["lr"]))
        self.block_size = block_size_of(layer.pattern)
        self.watch = GradientWatch(self.parameter)
        self.explored = Explored(layer.pattern)
        self.passes = 0
        self.kept_on: Pattern | None = None
        self.followers: list[SparseLayer] = []
        self.memory: dict[str, Tensor] = {}
        self.is_watched = False

    @property
    def pattern(self) -> Pattern:
        return self.layer.pattern

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 has spread the Parameter over processes."""
        return hasattr(self.parameter, "full_tensor")

    def store_all_tiles(self) -> None:
        """Store the pattern as updates do, also its empty tiles: compiled graphs know its size, which then
        never changes. Values stay where they are."""
        if self.block_size is None:
            self.layer._topology.pattern = _with_all_tiles(self.pattern)

    def attach(self, method: Any) -> None:
        """Claim the weight for a method."""
        _drivers[self.layer._topology] = weakref.ref(method)

    def detach(self) -> None:
        """Undo `attach`."""
        self.watch_gradient(False)
        _drivers.pop(self.layer._topology, None)

    def watch_gradient(self, wanted: bool, confirmed: bool = True) -> None:
        """Have backward passes tell the watch of the gradient, or not; see `GradientWatch.start`."""
        if wanted == self.is_watched:
            return
        self.layer._topology.observe(self.watch if wanted else None)
        self.is_watched = wanted
        if wanted:
            # FSDP2's Parameter never receives a gradient from autograd itself.
            self.watch.start(confirmed and not self.is_sharded)
        else:
            self.watch.stop()

    def end_step(self) -> None:
        """What the last step's gradient was made of is no longer needed."""
        if self.is_watched:
            self.passes = self.watch.count
        # Also where nothing is watched: a holdout batch has left what it was asked for.
        self.watch.clear()
        self.kept_on = None

    def forget_outdated(self) -> None:
        """Drop what was kept of a gradient on another pattern, as before a state dict was loaded."""
        if self.kept_on not in (None, self.pattern):
            self.watch.clear()

    def state(self) -> dict[str, Any]:
        """The layer's part of a method's state: what its pattern and the optimizer do not say."""
        return {
            "shape": list(self.pattern.shape),
            "nnz": self.pattern.nnz,
            "initial_learning_rate": self.initial_learning_rate,
            "passes": self.passes,
            "explored": self.explored.words.clone(),
            **{name: tensor.clone() for name, tensor in self.memory.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.initial_learning_rate = float(state["initial_learning_rate"])
        self.passes = state["passes"]
        self.explored.words.copy_(state["explored"])
        for name, tensor in self.memory.items():
            tensor.copy_(state[name])
        self.watch.clear()

    def matching(self, copy: nn.Module) -> SparseLayer:
        """The layer of the same name in a copy of the model, which can follow this one.

        Raises
        ------
        ValueError
            When there is none on the same pattern.
        """
        layers = dict(copy.named_modules())
        layer = layers.get(self.name)
        if not isinstance(layer, SparseLayer) or layer.storage != self.layer.storage:
            raise ValueError(
                f"model must have a sparse layer {self.name!r} with storage={self.layer.storage!r} to follow "
                f"with, got {describe(layer)}"
            )
        if layer.pattern != self.pattern and _with_all_tiles(layer.pattern) != _with_all_tiles(self.pattern):
            raise ValueError(
                f"model must have layer {self.name!r} on the pattern it is to follow, got it on another: "
                "copy the model as it is now"
            )
        if layer._topology is self.layer._topology:
            raise ValueError(f"model must be a copy, got one that shares the weight of layer {self.name!r}")
        return layer

    def check_attached(self) -> None:
        """Raise if the layer has got another Parameter than the optimizer's."""
        if self.layer.stored_weight is not self.parameter:
            raise RuntimeError(
                f"layer {self.name!r} has another Parameter than the one in the optimizer, as "
                "load_state_dict(assign=True) makes it: make the optimizer and the method after that"
            )

    def learning_rate_ratio(self, optimizer: torch.optim.Optimizer) -> float:
        """The group's learning rate over its initial one."""
        # Looked up each time: loading an optimizer's state replaces its groups.
        rate = float(optimizer.param_groups[self.group]["lr"])
        return rate / self.initial_learning_rate if self.initial_learning_rate else 1.0

    def count(self, fraction: float, regrow: bool) -> int:
        """Positions that an update exchanges: none while the weight is frozen."""
        pattern = self.pattern
        if not self.parameter.requires_grad:
            return 0
        if self.block_size is not None:
            return positions_exchanged(pattern, fraction, block_size=self.block_size, regrow=regrow)
        count = int(pattern.nnz * fraction)
        return count if regrow else min(count, pattern.numel - pattern.nnz)

    def take_parameter(self) -> None:
        """Go on with the Parameter that the layer has now, and let go of the one before."""
        self.parameter = self.layer.stored_weight
        self.watch = GradientWatch(self.parameter)

    def values(self) -> Tensor:
        """The active weights ``(nnz,)``."""
        weight = full(self.parameter.detach())
        return weight if self.layer.storage == "compact" else ops.pack(weight, self.pattern)

    def at_active(self, gradient: Tensor) -> Tensor:
        """The active positions of a gradient of the stored weight: ``(nnz,)``."""
        return gradient if self.layer.storage == "compact" else ops.pack(gradient, self.pattern)

    @torch.no_grad()
    def move(self, target: Pattern, optimizer: torch.optim.Optimizer) -> Tensor:
        """Move weight, gradient, optimizer state and followers to another pattern of the same size, in place.

        Returns
        -------
        Tensor
            ``(nnz,)``: 1 where the position was active before, 0 where it is new.
        """
        tensors = [self.parameter.detach(), *states_of(optimizer, self.parameter)]
        if self.parameter.grad is not None:
            tensors.append(self.parameter.grad)
        kept = _move_all(tensors, self.pattern, target)
        for layer in self.followers:
            _move_all([layer.stored_weight.detach()], layer.pattern, target)
            layer._topology.pattern = target
        self.layer._topology.pattern = target
        return kept

    @torch.no_grad()
    def draw_new(self, kept: Tensor, generator: torch.Generator) -> None:
        """Give the weights at new positions (``kept`` is 0) the values of `sparsekern.init.per_neuron_`."""
        before = self.values().clone()
        per_neuron_(self.layer, generator=generator)
        values = torch.where(kept != 0, before, self.values())
        masked = self.layer.storage == "masked"
        self.parameter.copy_(ops.unpack(values, self.pattern) if masked else values)


def _with_all_tiles(pattern: Pattern) -> Pattern:
    """The same positions, also empty tiles stored."""
    tiles = Layout.complete(pattern.shape, pattern.tile_size, pattern.nnz).tiles
    if pattern.num_tiles == tiles:
        return pattern
    return Pattern.from_mask(pattern.to_mask(), tile_size=pattern.tile_size, complete=True)


def _move_all(tensors: list[Tensor], source: Pattern, target: Pattern) -> Tensor:
    """Moves tensors of values ``(nnz,)``, or of the weight's shape, in place; see `DrivenLayer.move`."""
    masked = tensors[0].dim() > 1
    whole = [full(tensor) for tensor in tensors]
    vectors = [ops.pack(tensor, source) for tensor in whole] if masked else whole
    ones = torch.ones(source.nnz, dtype=vectors[0].dtype, device=source.device)
    *moved, kept = ops.transfer_all([*vectors, ones], source, target)
    for tensor, vector in zip(tensors, moved):
        write_full(tensor, ops.unpack(vector, target) if masked else vector)
    return kept


def driven_layers(
    model: nn.Module, optimizer: torch.optim.Optimizer, excluded: set[str]
) -> list[DrivenLayer]:
    """The sparse weights of a model that an optimizer trains.

    Weights that need no gradient are passed over, and one that several layers share is listed once.

    Raises
    ------
    ValueError
        For a model with no such weight, one that is not in the optimizer, or that another method moves.
    """
    groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    found: list[tuple[str, SparseLayer, int]] = []
    for name, layer in _sparse_weights(model):
        weight = layer.stored_weight
        if name in excluded or not weight.requires_grad:
            continue
        if id(weight) not in groups:
            raise ValueError(
                f"optimizer must hold the weights of all sparse layers, got {type(optimizer).__name__} "
                f"without that of {name!r}; make it from model.parameters() after sparsify_, or exclude the "
                "layer"
            )
        if (driver := driver_of(layer)) is not None:
            raise ValueError(f"layer {name!r} must not be moved by two methods, got one that {driver} moves")
        found.append((name, layer, groups[id(weight)]))
    if not found:
        raise ValueError(
            f"model must have a sparse layer to move, got {type(model).__name__} with {_came(model)}"
        )
    return [DrivenLayer(name, layer, optimizer, group) for name, layer, group in found]


def _came(model: nn.Module) -> str:
    """Why nothing can be moved."""
    if sparse := len(list(_sparse_weights(model))):
        return f"{sparse} that are excluded or frozen"
    if fours := sum(isinstance(module, TwoFourLayer) for module in model.modules()):
        return f"{fours} that are 2:4, whose masks follow from their weights or stay"
    return "none; call sparsify_ first"


def driver_of(layer: SparseLayer) -> str | None:
    """Name of the method that moves a layer; one whose optimizer is gone does not count."""
    if layer._topology not in _drivers:
        return None
    if _drivers[layer._topology]() is not None:
        # A method and its optimizer know each other: they outlive their last use until the next collection.
        gc.collect()
    method = _drivers[layer._topology]()
    return None if method is None else type(method).__name__


def check_unmoved(layers: Mapping[str, SparseLayer]) -> None:
    """Raise ValueError for the first layer, by name, that a method moves."""
    for name, layer in layers.items():
        if (driver := driver_of(layer)) is not None:
            raise ValueError(
                f"model must have no layer that a method moves, got {name!r}, which {driver} moves: call its "
                "detach() first"
            )


def _sparse_weights(model: nn.Module) -> Iterator[tuple[str, SparseLayer]]:
    """Every sparse weight under the name of the first layer that uses it."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer) and id(module._topology) not in seen:
            seen.add(id(module._topology))
            yield name, module
