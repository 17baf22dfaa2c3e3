"""Recipes: everything that decides the outcome of a run, as a frozen dataclass read from a YAML file."""

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparsekern.experiments.data import DATASETS
from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.models import MODELS

RECIPES_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Key:
    """What a recipe key means and which values it takes; kept in the dataclass field's metadata."""

    about: str
    kind: type
    choices: tuple[str, ...] = ()
    expected: str = ""
    accepts: Callable[[Any], bool] = lambda value: True
    optional: bool = False


def _key(about: str, kind: type, default: Any = dataclasses.MISSING, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"key": Key(about, kind, **more)})


def _choice(about: str, choices: Iterable[str], default: Any = dataclasses.MISSING) -> Any:
    return _key(about, str, default, choices=tuple(choices))


def _count(about: str, default: Any = dataclasses.MISSING, least: int = 1) -> Any:
    return _key(about, int, default, expected=f"at least {least}", accepts=lambda value: value >= least)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, complete: on one machine, equal recipes end with the same weights, bit for bit."""

    name: str
    description: str = ""

    model: str = _choice("network", MODELS)
    dataset: str = _choice("data set", DATASETS)

    sparsity: float = _key(
        "fraction of zero weights; 0 trains the dense network",
        float,
        0.0,
        expected="a number of at least 0 and below 1",
        accepts=lambda value: 0 <= value < 1,
    )
    distribution: str = _choice("how sparsity is spread over the layers", ("uniform", "er", "erk"), "uniform")
    storage: str = _choice(
        "compact keeps nnz values, masked a dense weight", ("compact", "masked"), "compact"
    )
    init: str = _choice(
        "initial weights: dense (Glorot, then masked), per_layer (Liu et al.), per_neuron (Evci et al.)",
        ("dense", "per_layer", "per_neuron"),
        "per_neuron",
    )

    optimizer: str = _choice("optimizer", ("sgd", "adamw"), "sgd")
    learning_rate: float = _key(
        "initial learning rate", float, expected="a number above 0", accepts=lambda value: value > 0
    )
    momentum: float = _key(
        "momentum of sgd, first beta of adamw",
        float,
        0.9,
        expected="a number of at least 0 and below 1",
        accepts=lambda value: 0 <= value < 1,
    )
    weight_decay: float = _key(
        "PyTorch's weight_decay, on weights only, never on biases (Keras' l2 is half of it)",
        float,
        0.0,
        expected="a number of at least 0",
        accepts=lambda value: value >= 0,
    )
    schedule: str = _choice(
        "learning rate: cosine falls to 0 over all steps, constant stays", ("cosine", "constant"), "cosine"
    )
    steps: int = _count("training steps")
    batch_size: int = _count("examples in a batch, at most those of the training set", 128)

    log_every: int = _count("steps between lines of training metrics", 100)
    evaluate_every: int = _count("steps between evaluations on the test set", 1000)
    checkpoint_every: int = _count("steps between checkpoints", 1000)
    benchmark_steps: int = _count(
        "steps to time against the dense network after training; 0 times none", 0, least=0
    )

    seed: int = _key("seed of the three below", int, 0)
    init_seed: int | None = _key("seed of the initial weights (default: seed)", int, None, optional=True)
    mask_seed: int | None = _key("seed of the random masks (default: seed)", int, None, optional=True)
    data_seed: int | None = _key("seed of the order of examples (default: seed)", int, None, optional=True)

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.description, str):
            raise RecipeError(f"description must be text, got {self.description!r}")
        for name, key in recipe_keys().items():
            object.__setattr__(self, name, _convert(name, key, getattr(self, name)))

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

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of SHA-256 over :meth:`settings`."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """Text that :func:`load_recipe` reads back."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


def recipe_keys() -> dict[str, Key]:
    """Every key that can be set, with its meaning."""
    return {
        field.name: field.metadata["key"] for field in dataclasses.fields(Recipe) if "key" in field.metadata
    }


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
        raise RecipeError(f"unknown recipe {name!r}{_near(name, names)}; the recipes are {', '.join(names)}")
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
        hint = _near(name, keys) or f"; the keys are {', '.join(keys)}"
        raise RecipeError(f"unknown {what} {name!r}{hint}")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _convert(name: str, key: Key, value: Any) -> Any:
    """``value`` as the key's type; YAML reads 1e-3 as text, and a command line knows only text."""
    if value is None or (key.optional and value == "none"):
        if key.optional:
            return None
        raise RecipeError(f"{name} must be {_kind(key)}, got nothing")
    if isinstance(value, bool) or (key.kind is int and isinstance(value, float)):
        raise RecipeError(f"{name} must be {_kind(key)}, got {value}")
    try:
        converted = key.kind(value)
    except (TypeError, ValueError):
        raise RecipeError(f"{name} must be {_kind(key)}, got {value!r}") from None
    if key.choices and converted not in key.choices:
        near = _near(converted, key.choices)
        raise RecipeError(f"{name} must be one of {', '.join(key.choices)}, got {value!r}{near}")
    if (key.kind is float and not math.isfinite(converted)) or not key.accepts(converted):
        raise RecipeError(f"{name} must be {key.expected or _kind(key)}, got {value}")
    return converted


def _kind(key: Key) -> str:
    if key.choices:
        return f"one of {', '.join(key.choices)}"
    return {int: "a whole number", float: "a number"}[key.kind]
