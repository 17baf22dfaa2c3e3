"""What the commands that train have in common: keys of the recipe as options, and mistakes as one line."""

import argparse
import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsekern.experiments.keys import Key
from sparsekern.experiments.parser import Parser
from sparsekern.experiments.recipe import Recipe, load_recipe, recipe_groups, recipe_keys, recipe_names

MOST = 1024


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the longest names need, with the list of recipes as it is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


def recipe_parser(prog: str, usage: str, description: str) -> Parser:
    """A parser whose first argument is a recipe, which its help lists."""
    names = recipe_names()
    width = max(map(len, names)) + 2
    parser = Parser(
        prog=prog,
        usage=f"{prog} RECIPE {usage}",
        description=description,
        epilog="\n".join(
            ["recipes:", *(f"  {name:<{width}}{load_recipe(name).description}" for name in names)]
        ),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="one of the recipes below, or a .yaml file")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="the folder of the data set's files, or a text"
    )
    return parser


def add_keys(parser: Parser, without: Sequence[str] = ()) -> None:
    """One option for every key of a recipe, in the groups that the keys have."""
    for title, keys in recipe_groups().items():
        wanted = {name: key for name, key in keys.items() if name not in without}
        add_group(parser, f"keys of the recipe: {title}", wanted)


def add_group(parser: Parser, title: str, keys: Mapping[str, Key]) -> None:
    """One option for every key, under a title."""
    group = parser.add_argument_group(title)
    for name, key in keys.items():
        option = "--" + name.replace("_", "-")
        group.add_argument(option, dest=f"key_{name}", metavar=key.metavar, help=key.about)


def given_keys(options: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """Those of the keys that were typed, as text."""
    given = {name: getattr(options, f"key_{name}", None) for name in keys}
    return {name: value for name, value in given.items() if value is not None}


def parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """The options; ``--learning_rate=1`` counts as ``--learning-rate=1``, and an unknown one gets a hint."""
    options, unknown = parser.parse_known_args([_dashed(argument) for argument in arguments])
    if unknown:
        parser.error(_complaint(unknown, parser))
    return options


def read_recipe(options: argparse.Namespace) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with its overrides, and those that changed it."""
    original = load_recipe(options.recipe)
    recipe = original.override(given_keys(options, recipe_keys()))
    before = original.settings()
    return recipe, {name: value for name, value in recipe.settings().items() if value != before[name]}


def default_output(name: str, overrides: dict[str, Any], prefix: str = "") -> Path:
    """``runs/NAME-KEY=VALUE...``: a folder of its own for every set of overrides."""
    parts = [prefix + name, *(f"{key}={value}" for key, value in overrides.items())]
    return Path("runs") / "-".join(parts).replace("/", "_")


def small_count(text: str) -> int:
    """A number of threads or processes, as argparse converts it; more than there are cores is allowed."""
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MOST}, got {text!r}")
    return int(text)


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    return option.replace("_", "-") + equals + value


def _complaint(unknown: list[str], parser: Parser) -> str:
    option = next((argument for argument in unknown if argument.startswith("-")), None)
    if option is None:
        return f"unexpected {shlex.join(unknown)}; a key is set with --KEY VALUE"
    option = option.partition("=")[0]
    known = [name for action in parser._actions for name in action.option_strings]
    near = difflib.get_close_matches(option, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else " (--help lists them)"
    return f"unknown option {option}{hint}"
