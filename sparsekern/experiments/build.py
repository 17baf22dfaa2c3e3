"""From a recipe to its network."""

from torch import nn

import sparsekern as sk
from sparsekern.experiments.models import MODELS
from sparsekern.experiments.recipe import Recipe
from sparsekern.nn import SparseLayer, SparsifyReport
from sparsekern.seeds import generator


def build_model(recipe: Recipe) -> tuple[nn.Module, SparsifyReport | None]:
    """The recipe's network on the CPU, and the report of what was made sparse (None for a dense one).

    Dense Glorot weights first, then random masks with exact counts, then the sparse initialization
    (``"dense"`` keeps the Glorot weights, masked). Every linear and convolutional weight is masked, first and
    last included, as in the paper; biases are dense and start at zero. Initial weights come from
    ``recipe.seed_of("init")`` and masks from ``recipe.seed_of("mask")``: either can be held while the other
    changes. With ``sparsity`` 0 the network stays dense, where the three initializations are one.
    """
    init_generator = generator(recipe.seed_of("init"), "init")
    _, construct = MODELS[recipe.model]
    model = construct(init_generator)
    if recipe.sparsity == 0:
        return model, None
    report = sk.sparsify_(
        model,
        sparsity=recipe.sparsity,
        distribution=recipe.distribution,
        storage=recipe.storage,
        init="keep",
        generator=generator(recipe.seed_of("mask"), "mask"),
    )
    for layer in model.modules():
        if not isinstance(layer, SparseLayer):
            continue
        if recipe.init == "per_layer":
            sk.init.per_layer_(layer, generator=init_generator)
        elif recipe.init == "per_neuron":
            sk.init.per_neuron_(layer, generator=init_generator)
    return model, report
