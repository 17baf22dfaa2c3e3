"""What was measured of a model, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Variant:
    """A kind of sparsity: one of the patterns of `sparsekern.sparsify_`, and the fraction of zeros."""

    pattern: str
    sparsity: float

    @property
    def percent(self) -> str:
        return f"{100 * self.sparsity:.4g} %"

    def __str__(self) -> str:
        return self.pattern if self.pattern == "2:4" else f"{self.percent} {self.pattern}"


@dataclass(frozen=True)
class Cost:
    """Median seconds.

    Attributes
    ----------
    step : float
        Of a layer: its forward and backward pass. Of a model: a training step, with the optimizer's.
    evaluation : float
        A forward pass without gradients, in evaluation mode.
    """

    step: float
    evaluation: float


@dataclass(frozen=True)
class LayerFinding:
    """Layers of the same kind, shape and inputs, which were timed once.

    Attributes
    ----------
    names : tuple of str
        As ``named_modules`` has them.
    kind : str
        ``"Linear"`` or ``"Conv2d"``.
    weight_shape : tuple of int
    input_shapes : tuple of shapes
        Of each call of one layer in a step.
    input_gradient : bool
        Whether the backward pass computes the gradient of an input; that of a first layer does not.
    dense : Cost
        All calls of one layer.
    sparse : mapping of Variant to Cost or None
        None where the variant leaves the layer dense.
    """

    names: tuple[str, ...]
    kind: str
    weight_shape: tuple[int, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    input_gradient: bool
    dense: Cost
    sparse: Mapping[Variant, Cost | None]

    @property
    def weights(self) -> int:
        """Positions of one layer's weight."""
        return math.prod(self.weight_shape)

    @property
    def total(self) -> float:
        """Seconds of all of them in a dense step, forward and backward."""
        return len(self.names) * self.dense.step

    def gain(self, variant: Variant, what: str = "step") -> float | None:
        """Times as fast as dense; None where the layer stays dense."""
        cost = self.sparse.get(variant)
        return None if cost is None else getattr(self.dense, what) / getattr(cost, what)


@dataclass(frozen=True)
class Bytes:
    """Memory of a model in training.

    Attributes
    ----------
    weights, gradients, optimizer, pattern : int
        Of the tensors that stay from step to step: parameters and buffers, their gradients, the optimizer's
        state, and masks or patterns.
    peak : int
        Most that a step holds at a time, all of these and activations included.
    """

    weights: int
    gradients: int
    optimizer: int
    pattern: int
    peak: int

    @property
    def held(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.pattern


@dataclass(frozen=True)
class WholeFinding:
    """A whole model: its costs, seconds of the optimizer's part of a step, and memory."""

    cost: Cost
    optimizer: float
    bytes: Bytes


@dataclass(frozen=True)
class About:
    """What was measured, and where.

    Attributes
    ----------
    name : str
        The model as it was asked for.
    model : str
        Its class.
    parameters, convertible : int
        All of its parameters, and those of them that are weights of layers which can be sparse.
    inputs : str
        A batch, in words.
    batch : int or None
        Examples in it; None where inputs do not tell.
    optimizer : str
    precision : str
        The dtype of weights, and of autocast.
    device : str
        With the number of threads where it is a CPU.
    """

    name: str
    model: str
    parameters: int
    convertible: int
    inputs: str
    batch: int | None
    optimizer: str
    precision: str
    device: str


@dataclass(frozen=True)
class Findings:
    """Everything that was measured of a model.

    Attributes
    ----------
    about : About
    layers : tuple of LayerFinding
        In module order.
    left : mapping of str to str
        Layers that no variant converts, with the reason; those excluded on request, too.
    dense, masked : WholeFinding
        The model as it is, and with masks multiplied to the same layers' dense weights in every pass.
    sparse : mapping of Variant to WholeFinding
    spread : float
        Between the quartiles of the dense model's steps, as a fraction of their median.
    load : float
        Processes that wanted to run when this began, for each core that there is.
    """

    about: About
    layers: tuple[LayerFinding, ...]
    left: Mapping[str, str]
    dense: WholeFinding
    masked: WholeFinding
    sparse: Mapping[Variant, WholeFinding]
    spread: float
    load: float

    @property
    def variants(self) -> tuple[Variant, ...]:
        return tuple(self.sparse)

    @property
    def patterns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(variant.pattern for variant in self.variants))

    def gain(self, variant: Variant, what: str = "step") -> float:
        """Times as fast as dense, the whole model."""
        return getattr(self.dense.cost, what) / getattr(self.sparse[variant].cost, what)

    @property
    def convertible_seconds(self) -> float:
        """What layers that can be sparse take of a dense step, with their part of the optimizer's."""
        about = self.about
        share = about.convertible / about.parameters if about.parameters else 0.0
        return sum(layer.total for layer in self.layers) + share * self.dense.optimizer

    def record(self) -> dict[str, Any]:
        """As JSON takes it; times in milliseconds."""
        layers = []
        for layer in self.layers:
            fields = {name: getattr(layer, name) for name in ("names", "kind", "weight_shape")}
            fields |= {"input_shapes": layer.input_shapes, "input_gradient": layer.input_gradient}
            sparse = [
                {**asdict(variant), **(_milliseconds(cost) if cost else {"stays_dense": True})}
                for variant, cost in layer.sparse.items()
            ]
            layers.append({**fields, "dense": _milliseconds(layer.dense), "sparse": sparse})
        sparse = [{**asdict(variant), **_whole(found)} for variant, found in self.sparse.items()]
        whole = {"dense": _whole(self.dense), "masked_dense": _whole(self.masked), "sparse": sparse}
        whole |= {"spread": round(self.spread, 4), "load": round(self.load, 2)}
        return {"about": asdict(self.about), "layers": layers, "left": dict(self.left), "whole": whole}


def _milliseconds(cost: Cost) -> dict[str, float]:
    return {"step_ms": round(1e3 * cost.step, 6), "evaluation_ms": round(1e3 * cost.evaluation, 6)}


def _whole(found: WholeFinding) -> dict[str, Any]:
    sizes = {f"{name}_bytes": size for name, size in asdict(found.bytes).items()}
    return {**_milliseconds(found.cost), "optimizer_ms": round(1e3 * found.optimizer, 6), **sizes}
