"""``sparsekern bench``: a layer of your shape or a model of yours, sparse and dense, on this machine."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

import torch

from sparsekern.bench import options as takes
from sparsekern.bench.contenders import OPTIMIZERS
from sparsekern.bench.contenders import PATTERNS as MODEL_PATTERNS
from sparsekern.bench.errors import BenchError
from sparsekern.bench.layer_command import DTYPES, bench_layer
from sparsekern.bench.layers import PATTERNS
from sparsekern.bench.model_command import AUTOCAST, SPARSITIES, bench_model
from sparsekern.experiments.parser import Parser
from sparsekern.user_code import one_line

_PROG = "sparsekern bench"
# Options of one of the two alone; None is what they have when they are not given.
LAYER_OPTIONS = ("sparsity", "tokens", "dtype")
MODEL_OPTIONS = (
    "sparsities",
    "input_shape",
    "input_tokens",
    "model_args",
    "batch",
    "optimizer",
    "autocast",
    "exclude",
    "plot",
    "json",
)


def bench_command(arguments: list[str]) -> int:
    """Run ``sparsekern bench`` with ``arguments`` and return the exit code."""
    options = build_parser().parse_args(arguments)
    is_layer = isinstance(options.what, tuple)
    try:
        _check_given(options, is_layer)
        device = _device(options.device)
        torch.set_num_threads(options.threads or torch.get_num_threads())
        if is_layer:
            bench_layer(options, device)
        else:
            bench_model(options, device)
    except (BenchError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        print(f"{_PROG}: error: {str(error).strip().partition(chr(10))[0]}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"{_PROG}: error: not enough memory", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{_PROG}: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{_PROG}: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> Parser:
    """The parser of both: what is measured decides which options have a meaning."""
    parser = Parser(
        prog=_PROG,
        description=(
            "Time sparse against dense on this machine, taking turns: a linear layer, OUTxIN such as "
            "4096x4096; or a model, layer by layer and whole, with advice: a recipe of `sparsekern train`, "
            "or MODULE:CALLABLE, which returns a torch.nn.Module or one and its inputs."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("what", type=_what, metavar="WHAT", help="OUTxIN, RECIPE or MODULE:CALLABLE")
    parser.add_argument(
        "--pattern",
        type=_patterns,
        metavar="P",
        help=f"{', '.join(PATTERNS)} (default: unstructured); of a model several, as in unstructured,2:4",
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--threads", type=takes.count, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument(
        "--seconds",
        type=takes.seconds,
        default=0.5,
        metavar="S",
        help="meant for each thing timed (default: 0.5)",
    )
    _add_layer_options(parser.add_argument_group("a layer"))
    _add_model_options(parser.add_argument_group("a model"))
    return parser


def _add_layer_options(group: Any) -> None:
    group.add_argument(
        "--sparsity", type=float, metavar="X", help="fraction of zeros (default: 0.9; 2:4 has 0.5)"
    )
    group.add_argument(
        "--tokens", type=takes.counts, metavar="N,N,...", help="rows of the input (default: 1,8,64,512)"
    )
    group.add_argument("--dtype", choices=tuple(DTYPES), help="default: float32")


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--sparsities",
        type=takes.sparsities,
        metavar="X,X,...",
        help=f"fractions of zeros (default: {','.join(map(str, SPARSITIES))}; 2:4 has 0.5)",
    )
    group.add_argument(
        "--input-shape", type=takes.input_shape, metavar="NxN...", help="of one example, such as 3x224x224"
    )
    group.add_argument(
        "--input-tokens",
        type=takes.input_tokens,
        metavar="VxL",
        help="L integers below V, such as 256x128",
    )
    group.add_argument(
        "--batch", type=takes.count, metavar="N", help="examples (default: 32, or the recipe's, at most 256)"
    )
    group.add_argument(
        "--model-args",
        type=takes.assignment,
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="arguments of the callable, Python literals or else text",
    )
    group.add_argument("--optimizer", choices=OPTIMIZERS, help="default: adamw, or the recipe's")
    group.add_argument("--autocast", choices=tuple(AUTOCAST), help="mixed precision (default: none)")
    group.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="layers to leave dense; * matches any text",
    )
    group.add_argument(
        "--plot", type=takes.picture_file, metavar="FILE.png", help="also draw it (matplotlib)"
    )
    group.add_argument("--json", type=takes.json_file, metavar="FILE", help="also write all figures")


def _what(text: str) -> tuple[int, int] | str:
    return takes.layer_shape(text) if re.fullmatch(r"[0-9]+([xX].*)?", text) else text


def _patterns(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for pattern in found:
        if pattern not in PATTERNS:
            raise argparse.ArgumentTypeError(
                f"invalid choice: {pattern!r} (choose from {', '.join(PATTERNS)})"
            )
    return found


def _check_given(options: argparse.Namespace, is_layer: bool) -> None:
    for name in MODEL_OPTIONS if is_layer else LAYER_OPTIONS:
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            kind, other = ("model", "layer") if is_layer else ("layer", "model")
            near = f"; a model takes {'--sparsities' if name == 'sparsity' else '--autocast'}"
            hint = near if name in ("sparsity", "dtype") else ""
            raise BenchError(f"{option} is for a {kind}, got it for a {other}{hint}")
    for pattern in options.pattern or ():
        if not is_layer and pattern not in MODEL_PATTERNS:
            raise BenchError(
                f"--pattern must be among {', '.join(MODEL_PATTERNS)} for a model, got {pattern}"
            )


def _device(name: str) -> torch.device:
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise BenchError(f"--device must be cpu or cuda, got {name}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BenchError(f"--device {name} cannot be used: {one_line(error)}") from error
    if device.type == "cuda":
        # Events are recorded on the current device.
        torch.cuda.set_device(device)
    return device
