"""Keys of a recipe: what one means, which values it takes, and text turned into them."""

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sparsekern.experiments.errors import RecipeError


@dataclass(frozen=True)
class Key:
    """What a recipe key means and which values it takes; kept in the dataclass field's metadata."""

    about: str
    kind: Callable[[Any], Any]
    choices: tuple[str, ...] = ()
    expected: str = ""
    accepts: Callable[[Any], bool] = lambda value: True
    optional: bool = False
    shown: str = ""

    @property
    def metavar(self) -> str:
        """What stands for a value in the command's help."""
        if self.choices or self.shown:
            return self.shown or "|".join(self.choices)
        return {int: "N", float: "X", bool: "true|false", str: "PATH", step_or_share: "N|P%"}[self.kind]


def key(about: str, kind: Callable[[Any], Any], default: Any = dataclasses.MISSING, **more: Any) -> Any:
    """A dataclass field that is a recipe key; without a default the recipe must give it."""
    return dataclasses.field(default=default, metadata={"key": Key(about, kind, **more)})


def choice(
    about: str, choices: Iterable[str], default: Any = dataclasses.MISSING, optional: bool = False
) -> Any:
    """A key that takes one of a few words."""
    return key(about, str, default, choices=tuple(choices), optional=optional)


def count(about: str, default: Any = dataclasses.MISSING, least: int = 1, optional: bool = False) -> Any:
    """A key that takes whole numbers from ``least`` on."""
    return key(
        about,
        int,
        default,
        expected=f"at least {least}",
        accepts=lambda value: value >= least,
        optional=optional,
    )


def number(
    about: str, default: Any = dataclasses.MISSING, *, least: float = 0, below: float = math.inf
) -> Any:
    """A key that takes numbers from ``least`` on, up to ``below``, which is left out."""
    limit = "" if below == math.inf else f" and below {below:g}"
    return key(
        about,
        float,
        default,
        expected=f"a number of at least {least:g}{limit}",
        accepts=lambda value: least <= value < below,
    )


def positive(about: str, default: Any = dataclasses.MISSING) -> Any:
    """A key that takes numbers above 0."""
    return key(about, float, default, expected="a number above 0", accepts=lambda value: value > 0)


def fraction(about: str, default: Any = dataclasses.MISSING) -> Any:
    """A key that takes numbers above 0 and at most 1."""
    return key(
        about,
        float,
        default,
        expected="a number above 0 and at most 1",
        accepts=lambda value: 0 < value <= 1,
    )


def switch(about: str, default: Any = dataclasses.MISSING) -> Any:
    """A key that takes true or false."""
    return key(about, bool, default)


def path(about: str) -> Any:
    """A key that takes the path of a file, or nothing."""
    return key(about, str, None, expected="the path of a file", accepts=bool, optional=True)


def moment(about: str, default: Any, least: int = 1) -> Any:
    """A key that takes whole numbers of steps from ``least`` on, or a percentage of all steps, as text such
    as ``75%``; or nothing, where that is the default. :func:`step_of` tells the step.
    """
    return key(
        about,
        step_or_share,
        default,
        expected=f"at least {least}, or a percentage of steps from 1% to 100%",
        accepts=lambda value: 1 <= _percent(value) <= 100 if isinstance(value, str) else value >= least,
        optional=default is None,
    )


def rising(about: str) -> Any:
    """A key that takes whole numbers, each above the one before, as text with commas, or percentages; or
    nothing. :func:`steps_of` tells the steps.
    """
    return key(
        about,
        str,
        None,
        expected="rising whole numbers with commas and no spaces, such as 100,200, or percentages of steps, "
        "such as 50%,75%",
        accepts=_is_rising,
        optional=True,
        shown="N,N|P%,P%",
    )


def step_or_share(value: Any) -> int | str:
    """``value`` as a whole number, or as text such as ``75%`` if it is a percentage; else a ValueError."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}%", value):
        return f"{_percent(value)}%"
    if isinstance(value, float):
        raise ValueError
    return int(value)


def step_of(value: int | str, steps: int) -> int:
    """The step that the value of a :func:`moment` means in a run of ``steps``, percentages rounded down."""
    return steps * _percent(value) // 100 if isinstance(value, str) else value


def steps_of(value: str, steps: int) -> list[int]:
    """The steps that the value of a :func:`rising` key means in a run of ``steps``."""
    return [step_of(step_or_share(part), steps) for part in value.split(",")]


def whole(about: str, default: int | None = None) -> Any:
    """A key that takes any whole number; without a default it may be left open."""
    return key(about, int, default, optional=default is None)


def convert(name: str, key: Key, value: Any) -> Any:
    """``value`` as the key's type; YAML reads 1e-3 as text, and a command line knows only text.

    Raises
    ------
    RecipeError
        Names the key, what was expected and what came.
    """
    if value is None or (key.optional and value == "none"):
        if key.optional:
            return None
        raise RecipeError(f"{name} must be {_kind(key)}, got nothing")
    if key.kind is bool:
        return _boolean(name, value)
    if isinstance(value, bool) or (key.kind is int and isinstance(value, float)):
        raise RecipeError(f"{name} must be {_kind(key)}, got {value}")
    try:
        converted = key.kind(value)
    except (TypeError, ValueError):
        raise RecipeError(f"{name} must be {_kind(key)}, got {value!r}") from None
    if key.choices and converted not in key.choices:
        hint = near(converted, key.choices)
        raise RecipeError(f"{name} must be one of {', '.join(key.choices)}, got {value!r}{hint}")
    if (key.kind is float and not math.isfinite(converted)) or not key.accepts(converted):
        raise RecipeError(f"{name} must be {key.expected or _kind(key)}, got {value}")
    return converted


def near(name: str, known: Iterable[str]) -> str:
    """A hint at the known names that look like ``name``, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _is_rising(text: str) -> bool:
    if not re.fullmatch(r"[0-9]{1,12}(,[0-9]{1,12})*|[0-9]{1,2}%(,[0-9]{1,2}%)*", text):
        return False
    numbers = [int(part.rstrip("%")) for part in text.split(",")]
    return all(first < second for first, second in itertools.pairwise(numbers))


def _percent(text: str) -> int:
    return int(text.rstrip("%"))


def _boolean(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise RecipeError(f"{name} must be true or false, got {value!r}")
    return value == "true"


def _kind(key: Key) -> str:
    if key.choices:
        return f"one of {', '.join(key.choices)}"
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "the path of a file",
        step_or_share: "a whole number or a percentage of steps, such as 75%",
    }[key.kind]
