"""The method of a recipe, attached to its optimizer, and what its updates leave in the metrics."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.experiments.data import Dataset, first_examples
from sparsekern.experiments.loss import cross_entropy
from sparsekern.experiments.recipe import Recipe
from sparsekern.experiments.settings import GRADIENT_METHODS
from sparsekern.methods import DynamicMethod, GradualPruning, PruningUpdate, UpdateStatistics
from sparsekern.nn import SparseLayer
from sparsekern.seeds import derive_seed

_METHODS = {"set": sk.SET, "rigl": sk.RigL, "rigl_inverted": sk.RigLInverted, "snfs": sk.SNFS}


def attach_method(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    recipe: Recipe,
    on_update: Callable[[UpdateStatistics | PruningUpdate], None],
) -> DynamicMethod | GradualPruning | None:
    """The method that updates the masks of ``model`` as the steps of ``optimizer`` go by; None if none does.

    Its state travels in ``optimizer.state_dict()``.

    Raises
    ------
    RecipeError
        If ``grow_batch_start + grow_batch_size`` is above the number of training examples.
    """
    if recipe.prunes:
        return sk.GradualPruning(
            model,
            optimizer,
            sparsity=recipe.sparsity,
            begin=recipe.prune_begin,
            end=recipe.prune_end,
            update_every=recipe.update_every,
            distribution=recipe.distribution,
            # Checkpoints of a run are of one form, whatever step they are of.
            compact=False,
            on_update=on_update,
        )
    if not recipe.updates_masks:
        return None
    grows_on_holdout = recipe.method in GRADIENT_METHODS and recipe.grow_gradient == "holdout"
    return _METHODS[recipe.method](
        model,
        optimizer,
        update_every=recipe.update_every,
        drop_fraction=recipe.drop_fraction,
        stop_at=recipe.last_update,
        schedule=recipe.drop_schedule,
        update=recipe.update,
        regrow_dropped=recipe.regrow_dropped,
        grow_gradient="holdout" if grows_on_holdout else "batch",
        holdout=HoldoutLoss(model, dataset, recipe) if grows_on_holdout else None,
        new_values=recipe.new_values,
        nonfinite="raise",
        on_update=on_update,
        seed=derive_seed(recipe.seed, "update"),
    )


class HoldoutLoss:
    """``mean cross-entropy of grow_batch_size training examples + weight_decay / 2 * sum(w ** 2)``.

    The examples are those from ``grow_batch_start`` on. The first term has the label smoothing of training.
    The second is there for SGD only, whose weight decay is its gradient; ``w`` are the active weights of
    sparse layers. Source: ``rigl_tf2/mask_updaters.py`` and ``train.py`` in google-research/rigl.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, recipe: Recipe) -> None:
        self._model = model
        self._images, self._labels = first_examples(
            dataset, recipe.grow_batch_size, "grow_batch_size", recipe.grow_batch_start
        )
        self._smoothing = recipe.label_smoothing
        self._decay = recipe.weight_decay if recipe.optimizer == "sgd" else 0.0

    def __call__(self) -> Tensor:
        """The loss, with its graph."""
        loss = cross_entropy(self._model(self._images), self._labels, label_smoothing=self._smoothing)
        if not self._decay:
            return loss
        layers = [layer for layer in self._model.modules() if isinstance(layer, SparseLayer)]
        return loss + self._decay / 2 * sum(_active(layer).square().sum() for layer in layers)


def _active(layer: SparseLayer) -> Tensor:
    return layer.values if layer.storage == "compact" else layer.to_dense()


def prune_record(update: PruningUpdate, step: int) -> dict[str, Any]:
    """The metrics of a pruning update that came with training step ``step``."""
    active = sum(update.active.values())
    return {"kind": "prune", "step": step, "sparsity": update.sparsity, "active": active}


def update_record(statistics: UpdateStatistics, step: int) -> dict[str, Any]:
    """The metrics of a mask update that came with training step ``step``: counts over all layers."""
    return {
        "kind": "update",
        "step": step,
        "drop_fraction": statistics.drop_fraction,
        "dropped": statistics.dropped,
        "grown": statistics.grown,
        "regrown": statistics.regrown,
        "exploration_rate": statistics.exploration_rate,
    }
