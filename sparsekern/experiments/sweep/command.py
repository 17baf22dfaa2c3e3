"""``sparsekern sweep``: its options, and its errors as one line."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from sparsekern.experiments.arguments import (
    add_keys,
    default_output,
    parse,
    read_recipe,
    recipe_parser,
    small_count,
)
from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.parser import Parser
from sparsekern.experiments.sweep.plan import SWEPT, parse_seeds, parse_words
from sparsekern.experiments.sweep.sweep import Sweep, SweepStopped, run_sweep

_PROG = "sparsekern sweep"


def sweep_command(arguments: list[str]) -> int:
    """Run ``sparsekern sweep`` with ``arguments``; 0, 1 if a run failed, 2 for a mistake, 128 + a signal."""
    options = parse(build_parser(), arguments)
    try:
        outcomes = run_sweep(read_sweep(options))
    except SweepStopped as stopped:
        command = shlex.join([*_PROG.split(), *arguments])
        print(f"{_PROG}: {stopped}; the same command carries on:\n  {command}", file=sys.stderr)
        return 128 + stopped.received
    except KeyboardInterrupt:
        print(f"{_PROG}: interrupted; the same command carries on from the last checkpoints", file=sys.stderr)
        return 130
    except ExperimentError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    failed = sum(outcome.result is None for outcome in outcomes)
    if failed:
        print(f"{_PROG}: {failed} of {len(outcomes)} runs failed", file=sys.stderr)
    return 1 if failed else 0


def build_parser() -> Parser:
    """The parser: what to sweep over, and one option for every other key of a recipe."""
    parser = recipe_parser(
        _PROG,
        "[--methods A,B] [--inits A,B] [--seeds 0-2] [--workers N] [--data-dir DIR] [--output DIR] "
        "[--KEY VALUE ...]",
        "Train a recipe with every combination of methods, initializations and seeds, several at a time with "
        "one thread each. Called again, it carries on: finished runs are kept, others go on from their last "
        "checkpoint.",
    )
    parser.add_argument("--methods", metavar="A,B", help="methods (default: the recipe's)")
    parser.add_argument("--inits", metavar="A,B", help="initializations (default: the recipe's)")
    parser.add_argument("--seeds", metavar="0-2,7", help="seeds and ranges of them (default: the recipe's)")
    parser.add_argument(
        "--workers", type=small_count, metavar="N", help="runs at a time (default: one a core)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the folder of all runs (default: runs/sweep- and the recipe with its overrides)",
    )
    add_keys(parser, without=SWEPT)
    return parser


def read_sweep(options: argparse.Namespace) -> Sweep:
    """The sweep that the options describe."""
    recipe, overrides = read_recipe(options)
    return Sweep(
        recipe=recipe,
        overrides=overrides,
        methods=parse_words(recipe.method if options.methods is None else options.methods, "method"),
        inits=parse_words(recipe.init if options.inits is None else options.inits, "init"),
        seeds=[recipe.seed] if options.seeds is None else parse_seeds(options.seeds),
        output=options.output or default_output(recipe.name, overrides, prefix="sweep-"),
        workers=options.workers or len(os.sched_getaffinity(0)),
        data_dir=options.data_dir,
    )


def _fail(message: str) -> int:
    print(f"{_PROG}: error: {message}", file=sys.stderr)
    return 2
