"""``sparsekern train``: its options, and its errors as one line."""

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.parser import Parser
from sparsekern.experiments.recipe import Recipe, load_recipe, recipe_groups, recipe_keys, recipe_names
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.runtime import Stopped

_PROG = "sparsekern train"
_MOST_THREADS = 1024


def train_command(arguments: list[str]) -> int:
    """Run ``sparsekern train`` with ``arguments`` and return the exit code."""
    parser = build_parser()
    arguments = [_dashed(argument) for argument in arguments]
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_complaint(unknown, parser))
    try:
        recipe, overrides = read_recipe(options)
        torch.set_num_threads(options.threads or torch.get_num_threads())
        run(recipe, _run_options(options, recipe, overrides))
    except Stopped as stopped:
        again = [argument for argument in arguments if argument not in ("--resume", "--overwrite")]
        command = shlex.join([*_PROG.split(), *again, "--resume"])
        print(f"{_PROG}: {stopped}; the state is saved, carry on with\n  {command}", file=sys.stderr)
        return 128 + stopped.received
    except KeyboardInterrupt:
        print(
            f"{_PROG}: interrupted; --resume carries on from the last checkpoint, if there is one",
            file=sys.stderr,
        )
        return 130
    except ExperimentError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return 0


def build_parser() -> Parser:
    """The parser: the options of a run, and one option for every key of a recipe."""
    parser = Parser(
        prog=_PROG,
        usage=f"{_PROG} RECIPE [--data-dir DIR] [--output DIR] [--resume] [--KEY VALUE ...]",
        description="Train a recipe. It holds a value for each of its keys, and each can be overridden.",
        epilog="\n".join(
            ["recipes:", *(f"  {name:<20}{load_recipe(name).description}" for name in recipe_names())]
        ),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="one of the recipes below, or a .yaml file")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the folder of MNIST's four files")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the run's folder (default: runs/ and the recipe with its overrides)",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="carry on from the last checkpoint in the folder"
    )
    again.add_argument("--overwrite", action="store_true", help="start anew where the folder holds a run")
    parser.add_argument("--threads", type=_threads, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard files")
    add_keys(parser)
    return parser


def add_keys(parser: Parser, without: Sequence[str] = ()) -> None:
    """One option for every key of a recipe, in the groups that the keys have."""
    for title, keys in recipe_groups().items():
        group = parser.add_argument_group(f"keys of the recipe: {title}")
        for name, key in keys.items():
            if name not in without:
                group.add_argument(_option(name), dest=f"key_{name}", metavar=key.metavar, help=key.about)


def read_recipe(options: argparse.Namespace) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with its overrides, and those that changed it."""
    given = {name: getattr(options, f"key_{name}") for name in recipe_keys()}
    original = load_recipe(options.recipe)
    recipe = original.override({name: value for name, value in given.items() if value is not None})
    before = original.settings()
    return recipe, {name: value for name, value in recipe.settings().items() if value != before[name]}


def default_output(recipe: Recipe, overrides: dict[str, Any]) -> Path:
    """``runs/NAME-KEY=VALUE...``: a folder of its own for every set of overrides."""
    return Path("runs") / "-".join([recipe.name, *(f"{name}={value}" for name, value in overrides.items())])


def _run_options(options: argparse.Namespace, recipe: Recipe, overrides: dict[str, Any]) -> RunOptions:
    return RunOptions(
        output=options.output or default_output(recipe, overrides),
        data_dir=options.data_dir,
        resume=options.resume,
        overwrite=options.overwrite,
        device=options.device,
        tensorboard=options.tensorboard,
    )


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _dashed(argument: str) -> str:
    """``--learning_rate=1`` as ``--learning-rate=1``: both spellings of a key are right."""
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


def _threads(text: str) -> int:
    # More threads than cores are allowed: the last bits of dense layers may depend on their number.
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {_MOST_THREADS}, got {text!r}")
    return int(text)


def _fail(message: str) -> int:
    print(f"{_PROG}: error: {message}", file=sys.stderr)
    return 2
