"""The figures of a model as tables for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from sparsekern.bench.advice import Advice, pays_from, shortened, size
from sparsekern.bench.findings import Findings, LayerFinding, WholeFinding

WIDTH = 100
WIDEST_NAME = 36
NONE = "-"
Row = Sequence[str]


def headline(findings: Findings) -> str:
    """What was measured, and where."""
    about = findings.about
    name = about.name if about.name == about.model else f"{about.name} ({about.model})"
    return (
        f"{name}: {about.parameters:,} parameters, {about.convertible:,} of them weights that can be sparse\n"
        f"inputs {about.inputs}; {about.optimizer}; {about.precision}; {about.device}; medians, taking turns"
    )


def text(findings: Findings, advice: Advice) -> str:
    """Everything: layers, the whole model, advice."""
    parts = [headline(findings)]
    for pattern in findings.patterns:
        for what, title in (
            ("step", "training"),
            ("evaluation", "evaluation"),
        ):
            parts.append(layer_table(findings, pattern, what, f"{pattern}, {title}: times as fast as dense"))
    parts.append(_left(findings))
    parts.append(whole_table(findings))
    wrapped = [
        textwrap.fill(line, WIDTH, subsequent_indent=" " * 4, break_long_words=False, break_on_hyphens=False)
        for line in advice.lines
    ]
    parts.append("\n".join(["Advice", *wrapped]))
    return "\n\n".join(part for part in parts if part)


def layer_table(findings: Findings, pattern: str, what: str, title: str) -> str:
    """One row for each kind of layer: its dense time, its share of the model's, and speed-ups."""
    variants = [variant for variant in findings.variants if variant.pattern == pattern]
    whole = getattr(findings.dense.cost, what)
    headers = [pattern if pattern == "2:4" else variant.percent for variant in variants]
    last = ["pays from"] if what == "step" and pattern != "2:4" else []
    rows: list[Row] = [["layers", "", "weight", "dense ms", "share", *headers, *last]]
    everything = [name for layer in findings.layers for name in layer.names]
    for layer in findings.layers:
        dense = getattr(layer.dense, what)
        share = len(layer.names) * dense / whole
        cells = [_gain(layer.gain(variant, what)) for variant in variants]
        start = pays_from(layer, pattern)
        end = [start.percent if start else "none"] if last else []
        shape = "x".join(map(str, layer.weight_shape))
        number = str(len(layer.names))
        rows.append(
            [label(layer, everything), number, shape, f"{1e3 * dense:.3f}", f"{share:.0%}", *cells, *end]
        )
    return f"{title}\n{_aligned(rows, left=1)}"


def whole_table(findings: Findings) -> str:
    """One row for each contender: times of a step and an evaluation, and memory."""
    rows: list[Row] = [
        ["whole model", "step ms", "", "opt. ms", "eval ms", "", "held", "", "step's peak", ""]
    ]
    everything: list[tuple[str, WholeFinding]] = [
        ("dense", findings.dense),
        ("masked-dense", findings.masked),
        *((str(variant), found) for variant, found in findings.sparse.items()),
    ]
    dense = findings.dense
    for name, found in everything:
        rows.append(
            [
                name,
                f"{1e3 * found.cost.step:.3f}",
                _gain(dense.cost.step / found.cost.step),
                f"{1e3 * found.optimizer:.3f}",
                f"{1e3 * found.cost.evaluation:.3f}",
                _gain(dense.cost.evaluation / found.cost.evaluation),
                size(found.bytes.held),
                f"{dense.bytes.held / found.bytes.held:.1f}x",
                size(found.bytes.peak),
                f"{dense.bytes.peak / found.bytes.peak:.1f}x",
            ]
        )
    return _aligned(rows, left=1)


def _left(findings: Findings) -> str:
    if not findings.left:
        return ""
    names = list(findings.left)
    width = min(max(map(len, names)), WIDEST_NAME)
    shown = [f"  {_cut(name, width):<{width}}  {reason}" for name, reason in findings.left.items()]
    more = [f"  and {len(shown) - 8} more"] if len(shown) > 8 else []
    return "\n".join(["left dense", *shown[:8], *more])


def label(layer: LayerFinding, everything: Sequence[str]) -> str:
    """Names of layers of a kind, short: as a pattern where one fits, of several the first."""
    first, *others = shortened(layer.names, everything)
    more = ", ..." if others else ""
    return _cut(first, WIDEST_NAME - len(more)) + more


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else "..." + name[3 - width :]


def _gain(gain: float | None) -> str:
    return NONE if gain is None else f"{gain:.2f}x"


def _aligned(rows: Sequence[Row], left: int) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
