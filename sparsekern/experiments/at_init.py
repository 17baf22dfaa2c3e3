"""The masks of a recipe that prunes at initialization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.experiments.data import Dataset
from sparsekern.experiments.errors import RecipeError, TrainingError
from sparsekern.experiments.recipe import Recipe
from sparsekern.methods import at_init_masks
from sparsekern.seeds import generator

# Without it, GraSP picks weights whose gradients are far larger than the dense network's.
GRASP_TEMPERATURE = 200


def masks_at_init(model: nn.Module, dataset: Dataset, recipe: Recipe) -> dict[str, Tensor]:
    """Masks of the dense network by the method ``recipe.at_init``, from its initial weights.

    SNIP and GraSP score by the mean cross-entropy of the first ``recipe.at_init_examples`` training examples
    of each class, GraSP with the logits divided by its paper's temperature of 200; SynFlow by the shape of an
    image, random masks by ``recipe.seed_of("mask")``.

    Raises
    ------
    RecipeError
        If a class has fewer examples than asked for.
    TrainingError
        If scores are not finite, or 0 everywhere.
    """
    if recipe.dataset == "text":  # of which no method that looks at examples is used
        images, labels = dataset.train_examples(slice(1))
    else:
        images, labels = _first_of_each_class(dataset, recipe.at_init_examples)
    temperature = GRASP_TEMPERATURE if recipe.at_init == "grasp" else 1
    try:
        return at_init_masks(
            model,
            recipe.at_init,
            recipe.sparsity,
            loss=lambda: F.cross_entropy(model(images) / temperature, labels),
            example=images[:1],
            scope=recipe.at_init_scope,
            distribution=recipe.distribution,
            generator=generator(recipe.seed_of("mask"), "mask"),
        )
    except (FloatingPointError, ValueError) as error:
        raise TrainingError(f"at_init {recipe.at_init}: {error}") from None


def _first_of_each_class(dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    labels = dataset.train_labels
    fewest = int(labels.bincount().min())
    if count > fewest:
        raise RecipeError(
            f"at_init_examples must be at most the training examples of the rarest class, {fewest:,}, "
            f"got {count:,}"
        )
    first = [(labels == label).nonzero().flatten()[:count] for label in labels.unique()]
    return dataset.train_examples(torch.cat(first))
