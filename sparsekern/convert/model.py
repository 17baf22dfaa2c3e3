"""The model that weights belong to: of the user's code, of a recipe, or of a run's checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

import sparsekern as sk
from sparsekern.convert.errors import ConvertError
from sparsekern.export.dense import PACKED
from sparsekern.nn.reasons import DENSE_TYPES
from sparsekern.user_code import UserCodeError, find_callable, one_line

if TYPE_CHECKING:
    from sparsekern.experiments.recipe import Recipe


def named_model(name: str) -> nn.Module:
    """The dense model that ``module:callable`` makes, or that of a recipe of ``sparsekern train``.

    Raises
    ------
    ConvertError
        When there is none of that name.
    """
    if ":" in name:
        return _called(name)
    with _recipe_errors(f"--model {name}"):
        from sparsekern.experiments.recipe import load_recipe

        return recipe_model(load_recipe(name), f"--model {name}")


def recipe_model(recipe: Recipe, source: object) -> nn.Module:
    """The recipe's network, dense, with any weights; `source` is named in errors."""
    from sparsekern.experiments.build import build_model
    from sparsekern.experiments.errors import ExperimentError
    from sparsekern.experiments.settings import DENSE_METHODS

    dense = recipe if recipe.method in DENSE_METHODS else recipe.dense_twin()
    try:
        return build_model(dense.override({"weights": None}))[0]
    except (ExperimentError, ValueError) as error:
        raise ConvertError(
            f"{source}: the network of the recipe cannot be built: {_line(error)}; --model names one that can"
        ) from None


def run_recipe(content: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe of a run's checkpoint."""
    with _recipe_errors(str(path)):
        from sparsekern.experiments.recipe import recipe_from

        return recipe_from(content, f"{path}: the run's recipe")


def fixed_masks(recipe: Recipe, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict of a run whose 2:4 masks follow from its weights, with the masks that they have."""
    model = recipe_model(recipe, path)
    options = {name: getattr(recipe, name) for name in ("method", "transposable", "refresh_every")}
    sk.sparsify_(model, pattern="2:4", **options)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConvertError(f"{path}: expected the weights of {recipe.network}: {_line(error)}") from None
    sk.nn.fix_masks_(model.eval())
    return model.state_dict()


def layer_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the weights of linear layers and convolutions, by layer name."""
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) in DENSE_TYPES
    }


def load_dense(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load dense weights, all of them.

    Raises
    ------
    ConvertError
        When they are not the model's.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConvertError(
            f"{path}: expected the weights of the model, found others: {_line(error)}"
        ) from None


def _called(name: str) -> nn.Module:
    rule = "expected what makes a model when called without arguments"
    try:
        make = find_callable(name)
    except UserCodeError as error:
        raise ConvertError(f"--model {name}: {error}") from error
    if isinstance(make, nn.Module):
        raise ConvertError(f"--model {name}: {rule}, got a {type(make).__name__}")
    try:
        model = make()
    except (Exception, SystemExit) as error:  # the user's own code
        raise ConvertError(f"--model {name}: {rule}, got {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConvertError(
            f"--model {name}: expected to make a torch.nn.Module, got a {type(model).__name__}"
        )
    if any(isinstance(module, PACKED) for module in model.modules()):
        raise ConvertError(f"--model {name}: expected the dense model, before sparsify_, got a sparse one")
    return model


@contextlib.contextmanager
def _recipe_errors(what: str) -> Iterator[None]:
    try:
        from sparsekern.experiments.errors import RecipeError

        yield
    except ModuleNotFoundError as error:
        raise ConvertError(
            f"{what}: needs the package {error.name}, of the extra [train]: pip install -e '.[train]'"
        ) from None
    except RecipeError as error:
        raise ConvertError(f"{what}: {error}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
