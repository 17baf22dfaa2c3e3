"""``sparsekern reproduce``: its options, and its errors as one line."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from sparsekern.experiments.arguments import (
    HelpFormatter,
    add_group,
    default_output,
    given_keys,
    parse,
    small_count,
)
from sparsekern.experiments.errors import ExperimentError, RecipeError
from sparsekern.experiments.keys import near
from sparsekern.experiments.parser import Parser
from sparsekern.experiments.recipe import recipe_groups
from sparsekern.experiments.reproduce.reproduce import Reproduction, reproduce
from sparsekern.experiments.reproduce.runs import FRESH
from sparsekern.experiments.reproduce.targets import TARGETS
from sparsekern.experiments.settings import Optimization
from sparsekern.experiments.sweep.plan import parse_seeds
from sparsekern.experiments.sweep.sweep import SweepStopped

_PROG = "sparsekern reproduce"
_SEEDS = "0-4"
_QUICK_SEEDS = "0-1"
_KEYS = {
    name: key
    for title, keys in recipe_groups().items()
    if title == Optimization.title
    for name, key in keys.items()
    if name != "first_step"
}


def reproduce_command(arguments: list[str]) -> int:
    """Run ``sparsekern reproduce``; 0, 1 if a run failed, 2 for a mistake, 128 + a signal."""
    options = parse(build_parser(), arguments)
    try:
        files, failed = reproduce(read_reproduction(options))
    except SweepStopped as stopped:
        command = shlex.join([*_PROG.split(), *arguments])
        print(f"{_PROG}: {stopped}; the same command carries on:\n  {command}", file=sys.stderr)
        return 128 + stopped.received
    except KeyboardInterrupt:
        print(f"{_PROG}: interrupted; the same command carries on, with what is done kept", file=sys.stderr)
        return 130
    except (ExperimentError, ImportError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    pages = [str(path) for name, path in files.items() if not name.startswith("figures/")]
    print("\n".join(["", "the report:", *(f"  {page}" for page in pages)]))
    for end in failed:
        print(f"{_PROG}: {end.run.folder} failed: {end.error}", file=sys.stderr)
    return 1 if failed else 0


def build_parser() -> Parser:
    """The parser."""
    width = max(map(len, TARGETS)) + 2
    parser = Parser(
        prog=_PROG,
        usage=f"{_PROG} NAME ... --data-dir DIR [--seeds 0-4] [--quick] [--workers N] [--output DIR] "
        "[--KEY VALUE ...]",
        description="Make tables and figures of the paper again, beside its printed values. Runs are shared "
        "by all that need them; finished ones are kept, and a stopped command carries on when it is called "
        "again.",
        epilog="\n".join(
            [
                "names:",
                f"  {'all':<{width}}all of these",
                *(f"  {name:<{width}}{target.about}" for name, target in TARGETS.items()),
            ]
        ),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", metavar="NAME", nargs="+", help="tables and figures, of those below")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the folder of MNIST's four files")
    parser.add_argument(
        "--seeds", metavar="0-4", help=f"seeds of the repetitions (default: {_SEEDS}; quick: {_QUICK_SEEDS})"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="cut runs to 400 steps: shows in minutes that all works; without --data-dir on bundled digits",
    )
    parser.add_argument(
        "--workers",
        type=small_count,
        metavar="N",
        help="runs at a time, of one thread each (default: one a core)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where runs and report go (default: runs/paper or runs/paper-quick, and the keys that are set)",
    )
    add_group(parser, "keys of the recipe that are not to be the paper's, in all runs", _KEYS)
    return parser


def read_reproduction(options: argparse.Namespace) -> Reproduction:
    """What the options ask for.

    Raises
    ------
    RecipeError
        For an unknown name, seeds that repeat, or no data.
    """
    if options.data_dir is None and not options.quick:
        raise RecipeError("--data-dir must be given, the folder of MNIST's four files; --quick does without")
    given = _QUICK_SEEDS if options.quick else _SEEDS
    text = given if options.seeds is None else options.seeds
    changes = given_keys(options, _KEYS)
    return Reproduction(
        names=_names(options.names),
        seeds=_seeds(text),
        output=options.output or default_output("paper-quick" if options.quick else "paper", changes),
        workers=options.workers or len(os.sched_getaffinity(0)),
        data_dir=None if options.data_dir is None else options.data_dir.absolute(),
        quick=options.quick,
        changes=changes,
    )


def _names(given: list[str]) -> list[str]:
    for name in given:
        if name != "all" and name not in TARGETS:
            hint = near(name, ["all", *TARGETS]) or f"; the names are all, {', '.join(TARGETS)}"
            raise RecipeError(f"unknown table or figure {name!r}{hint}")
    return list(TARGETS) if "all" in given else list(dict.fromkeys(given))


def _seeds(text: str) -> list[int]:
    seeds = parse_seeds(text)
    listed = [seed for part in text.split(",") for seed in parse_seeds(part)]
    if len(listed) != len(seeds):
        twice = next(seed for seed in seeds if listed.count(seed) > 1)
        raise RecipeError(f"--seeds must not repeat, got {twice} more than once in {text!r}")
    if max(seeds) >= FRESH:
        raise RecipeError(f"--seeds must be below {FRESH}, got {max(seeds)}")
    return seeds


def _fail(message: str) -> int:
    print(f"{_PROG}: error: {message}", file=sys.stderr)
    return 2
