"""``sparsekern bench``: a layer of your shape, sparse and dense, at several numbers of tokens."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

import torch

from sparsekern.bench.layers import PATTERNS, Answer, Question, answer
from sparsekern.experiments.parser import Parser

_PROG = "sparsekern bench"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST = 1 << 20


def bench_command(arguments: list[str]) -> int:
    """Run ``sparsekern bench`` with ``arguments`` and return the exit code."""
    options = build_parser().parse_args(arguments)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    out_features, in_features = options.shape
    try:
        question = Question(
            out_features=out_features,
            in_features=in_features,
            pattern=options.pattern,
            sparsity=_sparsity(options),
            dtype=DTYPES[options.dtype],
            device=torch.device(options.device),
        )
        print(_headline(question))
        answers = []
        for tokens in options.tokens:
            answers.append(answer(question, tokens, options.seconds))
            if len(answers) == 1:
                print(_row(_header(question)))
            print(_row(_cells(answers[-1])), flush=True)
        print(f"\n{verdict(question, answers)}")
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        print(f"{_PROG}: error: {error}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> Parser:
    """The parser."""
    parser = Parser(
        prog=_PROG,
        description="Time a sparse linear layer against torch.nn.Linear on this machine, taking turns.",
        allow_abbrev=False,
    )
    parser.add_argument("shape", type=_shape, metavar="OUTxIN", help="the weight's shape, such as 4096x4096")
    parser.add_argument("--pattern", choices=PATTERNS, default="unstructured")
    parser.add_argument(
        "--sparsity", type=float, metavar="X", help="fraction of zeros (default: 0.9; 2:4 has 0.5)"
    )
    parser.add_argument(
        "--tokens", type=_counts, default=[1, 8, 64, 512], metavar="N,N,...", help="rows of the input"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--threads", type=_count, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument(
        "--seconds", type=float, default=0.5, metavar="S", help="meant for each thing timed (default: 0.5)"
    )
    return parser


def verdict(question: Question, answers: Sequence[Answer]) -> str:
    """From how many tokens on, or up to how many, the sparse layer is the faster one."""
    lines = [_verdict("forward", [(each.tokens, each.speedup) for each in answers])]
    if question.trains:
        both = [(each.tokens, each.speedup_both) for each in answers if each.speedup_both is not None]
        lines.append(_verdict("forward and backward", both))
    slower = [each.tokens for each in answers if each.speedup < 1]
    faster = [each.tokens for each in answers if each.speedup >= 1]
    if question.pattern == "2:4" and slower and faster and max(slower) < min(faster):
        lines.append(f"TwoFourLinear(dense_below={min(faster)}) multiplies smaller batches densely")
    return "\n".join(lines)


def _verdict(what: str, speedups: Sequence[tuple[int, float]]) -> str:
    slower = [tokens for tokens, speedup in speedups if speedup < 1]
    faster = [tokens for tokens, speedup in speedups if speedup >= 1]
    if not slower:
        return f"{what}: sparse is faster at all of these"
    if not faster:
        return f"{what}: sparse is slower at all of these"
    if max(slower) < min(faster):
        return f"{what}: sparse is faster from {min(faster):,} tokens on, slower at {max(slower):,} and below"
    if max(faster) < min(slower):
        return f"{what}: sparse is faster up to {max(faster):,} tokens, slower at {min(slower):,} and above"
    return f"{what}: sparse is faster at {', '.join(map(str, faster))} tokens, slower at the others"


def _headline(question: Question) -> str:
    kind = question.pattern
    if not kind.startswith("2:4"):
        kind += f", {100 * question.sparsity:.4g} % zeros"
    where = f"{torch.get_num_threads()} threads" if question.device.type == "cpu" else str(question.device)
    dtype = str(question.dtype).removeprefix("torch.")
    return (
        f"{question.out_features} x {question.in_features}, {kind}, {dtype}, {where}; medians, milliseconds"
    )


def _header(question: Question) -> tuple[str, ...]:
    both = ("dense f+b", "sparse f+b", "ratio") if question.trains else ()
    return ("tokens", "dense", "sparse", "ratio", *both)


def _cells(found: Answer) -> tuple[str, ...]:
    cells = [
        f"{found.tokens:,}",
        f"{1e3 * found.dense:.3f}",
        f"{1e3 * found.sparse:.3f}",
        f"{found.speedup:.2f}x",
    ]
    if found.speedup_both is not None:
        cells += [
            f"{1e3 * found.dense_both:.3f}",
            f"{1e3 * found.sparse_both:.3f}",
            f"{found.speedup_both:.2f}x",
        ]
    return tuple(cells)


def _row(cells: Sequence[str]) -> str:
    return "".join(cell.rjust(11) for cell in cells)


def _sparsity(options: argparse.Namespace) -> float:
    if not options.pattern.startswith("2:4"):
        return 0.9 if options.sparsity is None else options.sparsity
    if options.sparsity not in (None, 0.5):
        raise ValueError(
            f"--sparsity must be left out for --pattern {options.pattern}, got {options.sparsity:g}"
        )
    return 0.5


def _shape(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,7})[xX]([0-9]{1,7})", text)
    sizes = tuple(map(int, found.groups())) if found else (0, 0)
    if not all(1 <= size <= MOST for size in sizes):
        raise argparse.ArgumentTypeError(f"must be OUTxIN, such as 4096x4096, got {text!r}")
    return sizes


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 7 or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MOST}, got {text!r}")
    return int(text)


def _counts(text: str) -> list[int]:
    return sorted({_count(part.strip()) for part in text.split(",")})
