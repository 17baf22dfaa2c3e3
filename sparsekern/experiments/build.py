"""From a recipe to its network."""

from dataclasses import replace
from typing import Any

from torch import nn

import sparsekern as sk
from sparsekern.experiments.at_init import masks_at_init
from sparsekern.experiments.data import Dataset, Text
from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.models import GPT_SIZES, IMAGE_MODELS, MODELS, SPARSE_INIT
from sparsekern.experiments.recipe import Recipe
from sparsekern.experiments.weights import load_weights
from sparsekern.methods.masks import load_masks
from sparsekern.nn import SparseLayer, SparsifyReport
from sparsekern.seeds import generator

# How far the sparsity of given masks may be from the recipe's: counts of layers are rounded.
_TOLERANCE = 0.005


def build_model(recipe: Recipe, dataset: Dataset | None = None) -> tuple[nn.Module, SparsifyReport | None]:
    """The recipe's network on the CPU, and the report of what was made sparse (None for a dense one).

    Dense weights first, then masks (random with exact counts, those of the file ``recipe.masks``, or
    by the Glorot weights with ``recipe.at_init``), then the sparse initialization (``"dense"`` keeps the
    Glorot weights, masked). Every linear and convolutional weight is masked, first and last included, as in
    the paper; biases are dense and start at zero. Initial weights come from ``recipe.seed_of("init")`` and
    random masks from ``recipe.seed_of("mask")``: either can be held while the other changes. With
    ``sparsity`` 0 or a dense method the network stays dense, where the three initializations are one. With a
    2:4 method all weights are 2:4 and start from the dense ones. A network that is pruned as it trains starts
    with full masks, on masked weights. ``recipe.weights`` are taken in place of the
    dense ones, and kept.

    Parameters
    ----------
    recipe : Recipe
    dataset : Dataset, optional
        On the CPU. Needed with ``recipe.at_init``, and where the characters of a text are tokens.

    Raises
    ------
    ExperimentError
        If the masks cannot be read, are for another network, or have another sparsity than the recipe; if the
        network cannot be scored.
    """
    init_generator = generator(recipe.seed_of("init"), "init")
    _, construct = MODELS[recipe.network]
    model = construct(init_generator, **_sizes(recipe, dataset))
    if recipe.weights is not None:
        load_weights(model, recipe)
    if not recipe.is_sparse:
        return model, None
    if recipe.is_two_four:
        return model, _two_four(model, recipe)
    if recipe.prunes:
        return model, sk.sparsify_(model, sparsity=0.0, storage="masked", init="keep")
    report = _mask(model, recipe, dataset)
    if recipe.weights is not None:
        return model, report
    options = SPARSE_INIT.get(recipe.network, {})
    for layer in model.modules():
        if not isinstance(layer, SparseLayer):
            continue
        if recipe.init == "per_layer":
            known = {name: option for name, option in options.items() if name != "mode"}
            sk.init.per_layer_(layer, generator=init_generator, **known)
        elif recipe.init == "per_neuron":
            sk.init.per_neuron_(layer, generator=init_generator, **options)
    return model, report


def _sizes(recipe: Recipe, dataset: Dataset | None) -> dict[str, Any]:
    """What the constructor of the recipe's network takes besides a generator."""
    sizes: dict[str, Any] = {}
    if recipe.network in IMAGE_MODELS:
        sizes["num_classes"] = recipe.classes
    if recipe.network == "resnet20":
        sizes["width_multiplier"] = recipe.width_multiplier
    if recipe.network == "gpt":
        shape = GPT_SIZES[recipe.gpt_size]
        sizes["config"] = replace(shape, vocabulary=_vocabulary(recipe, dataset), context=recipe.context)
    return sizes


def _vocabulary(recipe: Recipe, dataset: Dataset | None) -> int:
    if recipe.tokens == "bytes":
        return 256
    if not isinstance(dataset, Text):
        raise ValueError(f"dataset must be given for a recipe with tokens {recipe.tokens}, got {dataset}")
    return dataset.vocabulary


def _two_four(model: nn.Module, recipe: Recipe) -> SparsifyReport:
    decay = {"decay": recipe.sr_ste_decay} if recipe.method == "sr_ste" else {}
    fixed = recipe.method == "two_four_fixed"
    return sk.sparsify_(
        model,
        pattern="2:4",
        method="fixed" if fixed else recipe.method,
        transposable=recipe.transposable,
        refresh_every=1 if fixed else recipe.refresh_every,
        **decay,
    )


def _mask(model: nn.Module, recipe: Recipe, dataset: Dataset | None) -> SparsifyReport:
    if recipe.at_init is not None:
        if dataset is None:
            raise ValueError(f"dataset must be given for a recipe with at_init {recipe.at_init}, got None")
        masks = masks_at_init(model, dataset, recipe)
        return sk.sparsify_(model, masks=masks, storage=recipe.storage, init="keep")
    if recipe.masks is None:
        return sk.sparsify_(
            model,
            sparsity=recipe.sparsity,
            distribution=recipe.distribution,
            storage=recipe.storage,
            init="keep",
            generator=generator(recipe.seed_of("mask"), "mask"),
        )
    try:
        patterns = load_masks(recipe.masks)
    except OSError as error:
        raise ExperimentError(f"masks {recipe.masks}: cannot be read: {error.strerror or error}") from None
    except (ValueError, ImportError) as error:
        raise ExperimentError(f"masks {' '.join(str(error).split())}") from None  # it names the file
    layers = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    if patterns.keys() != layers:
        raise ExperimentError(
            f"masks {recipe.masks}: expected masks for the layers of {recipe.network} "
            f"({', '.join(sorted(layers))}), found {', '.join(sorted(patterns)) or 'none'}"
        )
    for name, pattern in patterns.items():
        expected = tuple(model.get_submodule(name).weight.shape)
        if tuple(pattern.shape) != expected:
            raise ExperimentError(
                f"masks {recipe.masks}: expected shape {expected} for {name} of {recipe.network}, "
                f"found {tuple(pattern.shape)}"
            )
    report = sk.sparsify_(model, masks=patterns, storage=recipe.storage, init="keep")
    if abs(report.sparsity - recipe.sparsity) > _TOLERANCE:
        raise ExperimentError(
            f"masks {recipe.masks}: expected the recipe's sparsity, {recipe.sparsity:g}, found "
            f"{report.sparsity:.4f}"
        )
    return report
