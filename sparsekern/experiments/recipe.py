"""Recipes: everything that decides the outcome of a run, as a frozen dataclass read from a YAML file."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparsekern.experiments.conflicts import find_conflict
from sparsekern.experiments.data import CIFAR10_CLASSES
from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.keys import Key, convert, near, step_of, steps_of
from sparsekern.experiments.models import SMALL_DENSE
from sparsekern.experiments.schedule import learning_rate
from sparsekern.experiments.settings import (
    DENSE_METHODS,
    GROUPS,
    PRUNING_METHODS,
    TWO_FOUR_METHODS,
    UPDATING_METHODS,
    Masks,
    Network,
    Optimization,
    Pruning,
    Records,
    Seeds,
    TwoFour,
    Updates,
)

RECIPES_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class _Title:
    name: str
    description: str = ""


# A dataclass takes the fields of its last base first.
@dataclass(frozen=True, kw_only=True)
class Recipe(Seeds, Records, Optimization, TwoFour, Pruning, Updates, Masks, Network, _Title):
    """One training run, complete: on one machine, equal recipes end with the same weights, bit for bit."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.description, str):
            raise RecipeError(f"description must be text, got {self.description!r}")
        for name, key in recipe_keys().items():
            object.__setattr__(self, name, convert(name, key, getattr(self, name)))
        if conflict := find_conflict(self):
            raise RecipeError(conflict)

    @property
    def is_sparse(self) -> bool:
        """Whether the network has masks."""
        return self.is_two_four or (self.sparsity > 0 and self.method not in DENSE_METHODS)

    @property
    def is_two_four(self) -> bool:
        """Whether the network's weights are 2:4."""
        return self.method in TWO_FOUR_METHODS

    @property
    def updates_masks(self) -> bool:
        """Whether the masks change during training, with as many weights after an update as before."""
        return self.method in UPDATING_METHODS

    @property
    def prunes(self) -> bool:
        """Whether training starts with the dense network and removes weights."""
        return self.method in PRUNING_METHODS

    @property
    def data_options(self) -> dict[str, Any]:
        """How image files and texts are read; other data sets take no notice."""
        return {name: getattr(self, name) for name in ("image_size", "num_classes", "tokens", "context")}

    @property
    def last_update(self) -> int | None:
        """The step from which masks stay as they are, where there is one: ``stop_at``."""
        return None if self.stop_at is None else step_of(self.stop_at, self.steps)

    @property
    def classes(self) -> int:
        """Outputs of an image model."""
        return CIFAR10_CLASSES if self.dataset == "cifar10" else self.num_classes

    @property
    def network(self) -> str:
        """The model that is built: the recipe's own, or its Small-Dense twin."""
        return SMALL_DENSE[self.model] if self.method == "small_dense" else self.model

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of training step ``step``, counted from 0."""
        return learning_rate(
            self.schedule,
            self.learning_rate,
            step,
            self.steps,
            warmup_steps=step_of(self.warmup_steps, self.steps),
            milestones=steps_of(self.milestones, self.steps) if self.milestones else [],
            factor=self.step_factor,
        )

    def seed_of(self, purpose: str) -> int:
        """The seed for ``"init"``, ``"mask"`` or ``"data"``: the key of that name, else ``seed``."""
        own = getattr(self, f"{purpose}_seed")
        return self.seed if own is None else own

    def override(self, overrides: Mapping[str, Any]) -> "Recipe":
        """A copy with some keys changed; values may be text, as typed on a command line.

        Raises
        ------
        RecipeError
            For an unknown key (with the near ones) or a value the key does not take.
        """
        for name in overrides:
            _check_known(name, "recipe key")
        return dataclasses.replace(self, **overrides)

    def settings(self) -> dict[str, Any]:
        """The keys that decide the outcome, without name and description."""
        return {name: getattr(self, name) for name in recipe_keys()}

    def dense_twin(self) -> "Recipe":
        """The same run of the dense network."""
        return self.override({"method": "dense"})

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of SHA-256 over the :meth:`settings` that are not the defaults.

        So a key that a later version adds, with a default that changes nothing, leaves digests as they are.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        given = {name: value for name, value in self.settings().items() if value != defaults[name]}
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """Text that :func:`load_recipe` reads back."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


def recipe_groups() -> dict[str, dict[str, Key]]:
    """Every key that can be set, with its meaning, under the title of its group."""
    return {
        group.title: {field.name: field.metadata["key"] for field in dataclasses.fields(group)}
        for group in GROUPS
    }


def recipe_keys() -> dict[str, Key]:
    """Every key that can be set, with its meaning."""
    return {name: key for keys in recipe_groups().values() for name, key in keys.items()}


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Read a recipe: one of :func:`recipe_names`, or the path of a ``.yaml`` file.

    Raises
    ------
    RecipeError
        If there is no such recipe, or its file is not a mapping of known keys to values they take.
    """
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_path else RECIPES_FOLDER / f"{name}.yaml"
    if not is_path and name not in recipe_names():
        names = recipe_names()
        raise RecipeError(f"unknown recipe {name!r}{near(name, names)}; the recipes are {', '.join(names)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected YAML, found {' '.join(str(error).split())}") from None
    return recipe_from(content, str(path), default_name=path.stem)


def recipe_from(content: Any, source: str, default_name: str = "recipe") -> Recipe:
    """Build a recipe from a mapping; ``source`` is named in errors."""
    if not isinstance(content, dict):
        raise RecipeError(f"{source}: expected a mapping of recipe keys, found {type(content).__name__}")
    try:
        for name in content:
            if name not in ("name", "description"):
                _check_known(str(name), "recipe key")
        needed = {f.name for f in dataclasses.fields(Recipe) if f.default is dataclasses.MISSING} - {"name"}
        missing = sorted(needed - content.keys())
        if missing:
            raise RecipeError(f"missing key{'s' * (len(missing) > 1)} {', '.join(missing)}")
        return Recipe(**{"name": default_name, **content})
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def differences(ours: Recipe, theirs: Recipe) -> list[str]:
    """One phrase for every setting that differs."""
    before, after = theirs.settings(), ours.settings()
    return [
        f"{name}: {before[name]} there, {after[name]} here" for name in after if before[name] != after[name]
    ]


def _check_name(name: Any) -> None:
    """A run's default folder is called after its recipe, and must not end up elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise RecipeError(f"name must be text that can name a folder, without a slash, got {name!r}")


def _check_known(name: str, what: str) -> None:
    keys = list(recipe_keys())
    if name not in keys:
        hint = near(name, keys) or f"; the keys are {', '.join(keys)}"
        raise RecipeError(f"unknown {what} {name!r}{hint}")
