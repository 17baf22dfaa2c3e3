"""What a pipeline does: recipes of its training stages, and how the last one rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.keys import Key, choice, convert, count, near, positive
from sparsekern.experiments.recipe import Recipe, recipe_from, recipe_keys
from sparsekern.experiments.settings import TWO_FOUR_METHODS

PIPELINES_FOLDER = Path(__file__).parents[1] / "pipelines"


@dataclass(frozen=True, kw_only=True)
class LastStages:
    """What the third and the fourth stage have of their own."""

    refine_method: str = choice("2:4 refinement: its method", TWO_FOUR_METHODS, "sr_ste")
    refine_learning_rate: float = positive("2:4 refinement: its initial learning rate")
    refine_steps: int = count("2:4 refinement: its training steps")
    activations: str = choice(
        "int8 activations: a scale for each sample (dynamic), or one for all (static)",
        ("dynamic", "static"),
        "dynamic",
    )
    calibration_examples: int = count(
        "training examples, the first ones, that static activations take their scale from", 1000
    )

    def __post_init__(self) -> None:
        for name, key in pipeline_keys().items():
            object.__setattr__(self, name, convert(name, key, getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Four stages: masks at initialization, dynamic sparse training, 2:4 refinement, int8.

    Attributes
    ----------
    sparse : Recipe
        Of the first two stages.
    last : LastStages
    """

    sparse: Recipe
    last: LastStages

    def __post_init__(self) -> None:
        if self.sparse.at_init is None or not self.sparse.is_sparse or self.sparse.is_two_four:
            raise RecipeError(
                f"{self.name}: the first stages of a pipeline need at_init and a method for unstructured "
                f"masks, got at_init {self.sparse.at_init or 'none'} and method {self.sparse.method}"
            )

    @property
    def name(self) -> str:
        return self.sparse.name

    @property
    def refine(self) -> Recipe:
        """The recipe of the third stage, but for the weights that it starts from."""
        changed = {"method": self.last.refine_method, "at_init": None}
        changed |= {"learning_rate": self.last.refine_learning_rate, "steps": self.last.refine_steps}
        return Recipe(name=f"{self.name}-refine", **{**self.sparse.settings(), **changed})

    def settings(self) -> dict[str, Any]:
        """Everything that decides the outcome."""
        return {**self.sparse.settings(), **asdict(self.last)}


def pipeline_keys() -> dict[str, Key]:
    """The keys that only pipelines have, with their meaning."""
    return {field.name: field.metadata["key"] for field in fields(LastStages)}


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
        Keys of :func:`pipeline_keys`, and keys of a recipe: those are for all stages that train.

    Raises
    ------
    RecipeError
        For an unknown name or key, or a value that a key does not take.
    """
    names = pipeline_names()
    if name not in names:
        hint = near(name, names)
        raise RecipeError(f"unknown pipeline {name!r}{hint}; the pipelines are {', '.join(names)}")
    path = PIPELINES_FOLDER / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    given = dict(overrides or {})
    for key in given:
        if key not in (known := [*pipeline_keys(), *recipe_keys()]):
            raise RecipeError(f"unknown key {key!r}{near(key, known)}")
    last = {key: content.pop(key) for key in pipeline_keys() if key in content}
    last |= {key: given.pop(key) for key in pipeline_keys() if key in given}
    sparse = recipe_from(content, str(path), default_name=name).override(given)
    return Pipeline(sparse=sparse, last=LastStages(**last))
