"""``sparsekern bench MODEL``: what a model is worth sparse, on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparsekern._version import __version__
from sparsekern.bench import model_plot, model_tables
from sparsekern.bench.advice import Advice, advise
from sparsekern.bench.contenders import Settings
from sparsekern.bench.errors import BenchError
from sparsekern.bench.findings import Findings, Variant
from sparsekern.bench.measure import measure
from sparsekern.bench.subject import Wanted, find
from sparsekern.files import write_atomically

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FORMAT = 1


def bench_model(options: argparse.Namespace, device: torch.device) -> None:
    """Measure the model that the options describe; print tables and advice, and write what was asked for."""
    if options.plot is not None:
        model_plot.require()
    wanted = Wanted(
        name=options.what,
        arguments=dict(options.model_args or ()),
        input_shape=options.input_shape,
        input_tokens=options.input_tokens,
        batch=options.batch,
    )
    variants = _variants(options)
    subject = find(wanted).to(device)
    settings = Settings(
        variants=variants,
        exclude=tuple(options.exclude or ()),
        optimizer=options.optimizer or subject.optimizer or "adamw",
        device=device,
        autocast=AUTOCAST.get(options.autocast),
        seconds=options.seconds,
    )
    with _progress() as tell:
        findings = measure(subject, settings, tell)
    advice = advise(findings)
    print(model_tables.text(findings, advice))
    if options.json is not None:
        content = json.dumps(record(findings, advice), indent=1)
        write_atomically(options.json, f"{content}\n".encode())
    if options.plot is not None:
        suffix = options.plot.suffix.removeprefix(".").lower()
        write_atomically(options.plot, model_plot.draw(findings, suffix))


def record(findings: Findings, advice: Advice) -> dict[str, object]:
    """What ``--json`` writes."""
    exclude = [
        {"pattern": variant.pattern, "sparsity": variant.sparsity, "exclude": names}
        for variant, names in advice.exclude.items()
    ]
    about = {"format": FORMAT, "sparsekern": __version__, "torch": torch.__version__}
    return {**about, **findings.record(), "advice": advice.lines, "exclude": exclude}


def _variants(options: argparse.Namespace) -> tuple[Variant, ...]:
    patterns = options.pattern or ("unstructured",)
    if patterns == ("2:4",) and options.sparsities is not None:
        raise BenchError("--sparsities must be left out for --pattern 2:4, which has 0.5")
    return tuple(
        Variant(pattern, sparsity)
        for pattern in patterns
        for sparsity in ((0.5,) if pattern == "2:4" else options.sparsities or SPARSITIES)
    )


@contextmanager
def _progress() -> Iterator[object]:
    """A line on a terminal that says what is being measured; notes stay."""
    shows = sys.stderr.isatty()

    def tell(what: str) -> None:
        if what.startswith("note: "):
            print(what, file=sys.stderr)
        elif shows:
            print(f"\r\x1b[Kmeasuring {what[:66]}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if shows:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
