"""The command ``sparsekern``: train a recipe or many runs of it, time layers, convert weights."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable, Sequence

from sparsekern._version import __version__
from sparsekern.experiments.parser import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake of the user's, 128 + number for a signal.

    Parameters
    ----------
    arguments
        What stands after ``sparsekern``; the process's own arguments if None.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in COMMANDS:
        _, command = COMMANDS[arguments[0]]
        return command(arguments[1:])
    parser = Parser(
        prog="sparsekern",
        description="Train sparse neural networks on real sparse kernels.",
        epilog="\n".join(["commands:", *(f"  {name:<11}{about}" for name, (about, _) in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sparsekern {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of those below; COMMAND --help says more")
    command = parser.parse_args(arguments).command
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    parser.error(f"unknown command {command!r}{hint} (the commands are {', '.join(COMMANDS)})")


def _train(arguments: list[str]) -> int:
    return _with_extra("train", "sparsekern.experiments.command", "train_command", arguments)


def _sweep(arguments: list[str]) -> int:
    return _with_extra("sweep", "sparsekern.experiments.sweep.command", "sweep_command", arguments)


def _reproduce(arguments: list[str]) -> int:
    module = "sparsekern.experiments.reproduce.command"
    return _with_extra("reproduce", module, "reproduce_command", arguments)


def _with_extra(command: str, module: str, function: str, arguments: list[str]) -> int:
    # Reading recipes and drawing bars need packages that sparsekern itself does not.
    try:
        run = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name not in ("yaml", "tqdm"):
            raise
        print(
            f"sparsekern {command}: error: needs the package {error.name}, of the extra [train]: "
            "pip install -e '.[train]'",
            file=sys.stderr,
        )
        return 2
    return run(arguments)


def _bench(arguments: list[str]) -> int:
    from sparsekern.bench.command import bench_command

    return bench_command(arguments)


def _convert(arguments: list[str]) -> int:
    from sparsekern.convert.command import convert_command

    return convert_command(arguments)


def _env(arguments: list[str]) -> int:
    Parser(prog="sparsekern env", description="Describe this machine and installation.").parse_args(arguments)
    from sparsekern import env

    print(env.report())
    return 0


#: name -> (one line about it, function of the arguments after it)
COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "train": ("train one of the recipes, sparse or dense", _train),
    "sweep": ("train one with many methods, initializations and seeds, and tabulate", _sweep),
    "reproduce": ("make the tables and figures of the paper again", _reproduce),
    "bench": ("time a layer or a model of yours, sparse against dense, with advice", _bench),
    "convert": ("weights between formats: dense, packed, 2:4, CSR, ONNX", _convert),
    "env": ("describe this machine and installation", _env),
}
