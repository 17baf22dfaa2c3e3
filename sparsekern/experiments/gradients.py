"""The gradient flow of a run, on the first examples of its training set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.analysis import MaskUpdateRecorder, gradient_flow
from sparsekern.experiments.data import Dataset, first_examples
from sparsekern.experiments.loss import cross_entropy
from sparsekern.experiments.recipe import Recipe
from sparsekern.methods import DynamicMethod


class Gradients:
    """Measures what a recipe with ``gradient_flow_every`` asks for; nothing with 0.

    The loss is the mean cross-entropy of the first ``gradient_flow_examples`` training examples, without a
    regularizer.

    Raises
    ------
    RecipeError
        If there are fewer training examples.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, dataset: Dataset, recipe: Recipe
    ) -> None:
        self._model = model
        self._recorder: MaskUpdateRecorder | None = None
        if not recipe.gradient_flow_every:
            return
        size = recipe.gradient_flow_examples
        self._images, self._labels = first_examples(dataset, size, "gradient_flow_examples")
        if recipe.updates_masks:
            self._recorder = MaskUpdateRecorder(model, optimizer, self.loss)

    def loss(self, model: nn.Module) -> Tensor:
        """Of any network on the fixed examples."""
        return cross_entropy(model(self._images), self._labels)

    def follow(self, method: Any) -> None:
        """Measure around the updates of ``method``, unless it removes weights only, or is none."""
        if self._recorder is not None and isinstance(method, DynamicMethod):
            self._recorder.follow(method)

    def record(self, step: int) -> dict[str, Any]:
        """Metrics after ``step`` steps.

        Raises
        ------
        FloatingPointError
            If the norm is nan or infinite.
        """
        norm = _finite(gradient_flow(self._model, self.loss).norm, step)
        return {"kind": "gradient", "step": step, "norm": norm}

    def change_records(self, step: int) -> list[dict[str, Any]]:
        """Metrics of the mask update that was just made; none where nothing is measured.

        Raises
        ------
        FloatingPointError
            If a norm is nan or infinite.
        """
        if self._recorder is None:
            return []
        before, after = (_finite(flow.norm, step) for flow in self._recorder.after())
        return [{"kind": "gradient_change", "step": step, "before": before, "after": after}]


def _finite(norm: float, step: int) -> float:
    if not math.isfinite(norm):
        raise FloatingPointError(f"the norm of the gradient became {norm} by step {step:,}")
    return norm
