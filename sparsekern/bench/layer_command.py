"""``sparsekern bench OUTxIN``: a layer of your shape, sparse and dense, at several numbers of tokens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from sparsekern.bench.layers import Answer, Question, answer
from sparsekern.formats.checks import check_sparsity

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENS = [1, 8, 64, 512]


def bench_layer(options: argparse.Namespace, device: torch.device) -> None:
    """Measure the layer that the options describe, and print a table and what it means."""
    out_features, in_features = options.what
    question = Question(
        out_features=out_features,
        in_features=in_features,
        pattern=_pattern(options),
        sparsity=_sparsity(options),
        dtype=DTYPES[options.dtype or "float32"],
        device=device,
    )
    check_sparsity(question.sparsity)
    print(_headline(question))
    answers = []
    for tokens in options.tokens or TOKENS:
        answers.append(answer(question, tokens, options.seconds))
        if len(answers) == 1:
            print(_row(_header(question)))
        print(_row(_cells(answers[-1])), flush=True)
    print(f"\n{verdict(question, answers)}")


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


def _pattern(options: argparse.Namespace) -> str:
    patterns = options.pattern or ("unstructured",)
    if len(patterns) > 1:
        raise ValueError(f"--pattern must be one of them for a layer, got {','.join(patterns)}")
    return patterns[0]


def _sparsity(options: argparse.Namespace) -> float:
    if not _pattern(options).startswith("2:4"):
        return 0.9 if options.sparsity is None else options.sparsity
    if options.sparsity not in (None, 0.5):
        raise ValueError(
            f"--sparsity must be left out for --pattern {_pattern(options)}, got {options.sparsity:g}"
        )
    return 0.5
