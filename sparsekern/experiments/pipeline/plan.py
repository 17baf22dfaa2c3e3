"""What a pipeline does: recipes of its training stages, and how the last one rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.keys import Key, choice, convert, count
from sparsekern.experiments.recipe import Recipe, recipe_from, recipe_keys

PIPELINES_FOLDER = Path(__file__).parents[1] / "pipelines"
# Of a pipeline's file, beside the keys of a recipe.
PARTS = ("refine", "int8")


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How the last stage rounds activations; its weights have one scale for each output."""

    activations: str = choice(
        "int8 activations: a scale for each sample (dynamic), or one for all (static)",
        ("dynamic", "static"),
        "dynamic",
    )
    calibration_examples: int = count(
        "training examples, the first ones, that static activations take their scale from", 1000
    )


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Four stages: masks at initialization, dynamic sparse training, 2:4 refinement, int8.

    Attributes
    ----------
    sparse : Recipe
        Of the first two stages.
    refine : Recipe
        Of the third, without the weights that it starts from.
    int8 : Int8
        The fourth.
    """

    name: str
    description: str
    sparse: Recipe
    refine: Recipe
    int8: Int8

    def __post_init__(self) -> None:
        for name, key in int8_keys().items():
            object.__setattr__(self.int8, name, convert(name, key, getattr(self.int8, name)))
        if self.sparse.at_init is None or not self.sparse.is_sparse or self.sparse.is_two_four:
            raise RecipeError(
                f"{self.name}: its first stages need at_init and a sparse method, got at_init "
                f"{self.sparse.at_init or 'none'} and method {self.sparse.method}"
            )
        if not self.refine.is_two_four:
            raise RecipeError(f"{self.name}: refine needs a 2:4 method, got {self.refine.method}")

    def settings(self) -> dict[str, Any]:
        """Everything that decides the outcome."""
        return {
            "sparse": self.sparse.settings(),
            "refine": self.refine.settings(),
            "int8": asdict(self.int8),
        }


def int8_keys() -> dict[str, Key]:
    """The keys of the last stage, with their meaning."""
    return {name: field.metadata["key"] for name, field in Int8.__dataclass_fields__.items()}


def pipeline_names() -> list[str]:
    """The pipelines that come with the package."""
    return sorted(path.stem for path in PIPELINES_FOLDER.glob("*.yaml"))


def load_pipeline(name: str, overrides: Mapping[str, Any] | None = None) -> Pipeline:
    """One of :func:`pipeline_names`, with some keys changed.

    Parameters
    ----------
    name : str
        Of the pipeline.
    overrides : mapping of str to value
        Keys of a recipe are those of the first two stages; the third has them too, but for those that the
        pipeline itself sets there. Keys of :func:`int8_keys` are the last stage's.

    Raises
    ------
    RecipeError
        For an unknown key or a value that a key does not take.
    """
    path = PIPELINES_FOLDER / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    refine, int8 = (dict(content.pop(part)) for part in PARTS)
    sparse = recipe_from(content, str(path), default_name=name)
    given = dict(overrides or {})
    int8.update({key: given.pop(key) for key in int8_keys() if key in given})
    sparse = sparse.override(given)
    # The masks of the third stage are those of its own method.
    settings = {key: value for key, value in sparse.settings().items() if key in recipe_keys()}
    refined = Recipe(name=f"{name}-refine", **{**settings, "at_init": None, **refine})
    return Pipeline(
        name=name, description=sparse.description, sparse=sparse, refine=refined, int8=Int8(**int8)
    )
