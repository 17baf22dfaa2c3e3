"""The dynamic methods: where each of them grows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparsekern.formats.checks import describe, is_number
from sparsekern.methods.base import DynamicMethod
from sparsekern.methods.contributions import Scores
from sparsekern.methods.dense_gradient import dense_gradient
from sparsekern.methods.growth import Growth
from sparsekern.methods.timetable import Timetable

__all__ = ["SET", "SNFS", "RigL", "RigLInverted", "Static"]


class Static(DynamicMethod):
    """Never moves a pattern: the baseline, with the same signature. See `DynamicMethod` for parameters."""

    def _plan(self) -> Timetable:
        return Timetable(self.options.update_every, stop_at=0)


class SET(DynamicMethod):
    """Grows at random. See `DynamicMethod` for parameters.

    References
    ----------
    Mocanu et al., *Scalable training of artificial neural networks with adaptive sparse connectivity inspired
    by network science*, Nature Communications 2018.
    """

    def scores(self, growth: Growth) -> Scores:
        return growth.random_scores()


class RigL(DynamicMethod):
    """Grows where the gradient of the dense weight is largest in magnitude. See `DynamicMethod` for
    parameters.

    With ``grow_gradient="batch"`` the backward pass before an update also selects the positions to grow (see
    `sparsekern.ops.grow_candidates`), so beside what training needs an update takes memory for the selected
    positions and a copy of the active weights; or for the dense gradient, if that is smaller than the layer's
    input and output. Where gradients are accumulated, the inputs and output
    gradients of the layers are kept until the step, or one dense gradient for each layer if that is less.
    Under several processes, and for patterns of blocks, they are kept too, and one layer's dense gradient
    exists at a time.

    References
    ----------
    Evci et al., *Rigging the Lottery: Making All Tickets Winners*, ICML 2020.
    """

    reads_gradient = True
    selects_largest = True

    def scores(self, growth: Growth) -> Scores | None:
        return growth.largest_gradients()


class RigLInverted(RigL):
    """Grows where the gradient is least: the control of Evci et al., *Gradient Flow in Sparse Neural
    Networks*, 2022. One layer's dense gradient exists at a time. See `DynamicMethod` for parameters."""

    selects_largest = False

    def scores(self, growth: Growth) -> Scores | None:
        magnitudes = growth.gradient_magnitudes()
        return None if magnitudes is None else magnitudes.neg_()


class SNFS(RigL):
    """Grows where a running mean of the dense gradient is largest in magnitude.

    Holds a dense tensor for each layer and computes a dense gradient in each step: neither memory nor time is
    that of a sparse network. Layers keep their number of weights: the paper's redistribution between layers
    is not part of it. The mean is of gradients as the backward pass computed them, so a GradScaler's scale
    weights them when it changes. See `DynamicMethod` for the other parameters.

    Parameters
    ----------
    momentum : float
        In [0, 1): of the running mean ``m = momentum * m + (1 - momentum) * gradient``.

    References
    ----------
    Dettmers and Zettlemoyer, *Sparse Networks from Scratch: Faster Training without Losing Performance*,
    2019.
    """

    selects_largest = False
    follows_gradient = True

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, momentum: float = 0.9, **options: Any
    ) -> None:
        if not is_number(momentum) or not 0 <= momentum < 1:
            raise ValueError(f"momentum must be a number in [0, 1), got {describe(momentum)}")
        if options.get("grow_gradient", "batch") != "batch":
            raise ValueError(
                "grow_gradient must be 'batch' for SNFS, which follows every step's gradient, got "
                f"{options['grow_gradient']!r}"
            )
        self.own_options = {"momentum": float(momentum)}
        super().__init__(model, optimizer, **options)
        for layer in self.layers:
            layer.memory["mean_gradient"] = dense_gradient([], layer.pattern, layer.parameter.dtype)

    def take_step(self) -> None:
        momentum = self.own_options["momentum"]
        for layer in self.layers:
            gradient = self.gradient_of(layer)
            if self._ranks.size > 1:
                # The mean over processes: a run may go on with another number of them.
                gradient = gradient / self._ranks.size
            # One step whose gradient overflows would spoil the mean for ever.
            if gradient.isfinite().all():
                mean = layer.memory["mean_gradient"]
                # The model may have got another dtype since.
                mean.lerp_(gradient.to(mean.dtype), 1 - momentum)

    def scores(self, growth: Growth) -> Scores | None:
        mean = growth.layer.memory["mean_gradient"]
        # All zeros say nothing, and ties would gather the weights in the first rows.
        return growth.magnitudes(mean) if mean.any() else None
