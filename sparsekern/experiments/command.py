"""``sparsekern train``: its options, and its errors as one line."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from sparsekern.experiments.arguments import (
    add_group,
    add_keys,
    default_output,
    given_keys,
    parse,
    read_recipe,
    recipe_parser,
    small_count,
)
from sparsekern.experiments.errors import ExperimentError, RecipeError
from sparsekern.experiments.parser import Parser
from sparsekern.experiments.pipeline.plan import load_pipeline, pipeline_keys, pipeline_names
from sparsekern.experiments.pipeline.run import run_pipeline
from sparsekern.experiments.recipe import recipe_keys
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.runtime import Stopped

_PROG = "sparsekern train"


def train_command(arguments: list[str]) -> int:
    """Run ``sparsekern train`` with ``arguments`` and return the exit code."""
    options = parse(build_parser(), arguments)
    try:
        torch.set_num_threads(options.threads or torch.get_num_threads())
        if options.recipe in pipeline_names():
            _train_pipeline(options)
        else:
            _train_recipe(options)
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


def _train_recipe(options: argparse.Namespace) -> None:
    if given := given_keys(options, pipeline_keys()):
        raise RecipeError(f"{next(iter(given))} is a key of pipelines ({', '.join(pipeline_names())})")
    recipe, overrides = read_recipe(options)
    run(recipe, _run_options(options, recipe.name, overrides))


def _train_pipeline(options: argparse.Namespace) -> None:
    overrides = given_keys(options, {**recipe_keys(), **pipeline_keys()})
    pipeline = load_pipeline(options.recipe, overrides)
    run_pipeline(pipeline, _run_options(options, pipeline.name, overrides))


def build_parser() -> Parser:
    """The parser: the options of a run, and one option for every key of a recipe."""
    parser = recipe_parser(
        _PROG,
        "[--data-dir DIR] [--output DIR] [--resume] [--KEY VALUE ...]",
        "Train a recipe. It holds a value for each of its keys, and each can be overridden.",
    )
    lines = [f"  {name}  {load_pipeline(name).sparse.description}" for name in pipeline_names()]
    parser.epilog = "\n".join([parser.epilog, "", "pipelines:", *lines])
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
    parser.add_argument("--threads", type=small_count, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument(
        "--workers",
        type=small_count,
        metavar="N",
        help="processes that read image files (default: one a core)",
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard files")
    add_keys(parser)
    add_group(parser, "keys of a pipeline", pipeline_keys())
    return parser


def _run_options(options: argparse.Namespace, name: str, overrides: dict[str, Any]) -> RunOptions:
    return RunOptions(
        output=options.output or default_output(name, overrides),
        data_dir=options.data_dir,
        resume=options.resume,
        overwrite=options.overwrite,
        device=options.device,
        tensorboard=options.tensorboard,
        workers=options.workers or len(os.sched_getaffinity(0)),
    )


def _fail(message: str) -> int:
    print(f"{_PROG}: error: {message}", file=sys.stderr)
    return 2
