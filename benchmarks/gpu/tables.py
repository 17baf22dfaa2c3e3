"""Tables of the GPU's sections, from their records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.contenders import DENSE, SPARSE
from benchmarks.gpu import memory
from benchmarks.gpu.jobs import DENSE_NAMES, SPARSE_NAMES, fastest
from benchmarks.table import Table

Record = dict[str, Any]
NONE = "-"
MIB = 2**20
SHOWN = {
    "speed-up": lambda value: f"{value:.2f}x",
    "roofline": lambda value: f"{value:.0%}",
    "microseconds": lambda value: f"{value:.0f} us",
    "passes": lambda value: f"{value:.2f} passes",
    "memory": lambda value: f"{value:.1f}x less",
}


def microseconds(time: Record | None) -> str:
    if time is None:
        return NONE
    return "wrong" if "wrong" in time else f"{1e3 * time['median_ms']:.1f}" if "median_ms" in time else NONE


def op_tables(records: list[Record]) -> list[Table]:
    """For each op, every contender in microseconds, and the bars that a row answers to."""
    tables = []
    for op in dict.fromkeys(record["op"] for record in records):
        chosen = [record for record in records if record["op"] == op]
        names = list(dict.fromkeys(name for record in chosen for name in record["times"]))
        header = ["case", "pattern", "dtype", *(f"{name} us" for name in names), "speed-up", "bar", ""]
        table = Table(f"{op}: microseconds on the GPU", header, left=3)
        for record in chosen:
            times = [microseconds(record["times"].get(name)) for name in names]
            dense, ours = (fastest(record["times"], which) for which in (DENSE_NAMES, SPARSE_NAMES))
            gain = f"{dense / ours:.2f}" if dense and ours else NONE
            pattern = f"{record['sparsity']:.0%} {record['pattern']}"
            table.add(record["case"], pattern, record["dtype"], *times, gain, *_verdict(record["bars"]))
            _explain(table, record)
        tables.append(table)
    return tables


def _verdict(found: list[Record]) -> tuple[str, str]:
    wanted = ", ".join(SHOWN[bar["measure"]](bar["wanted"]) for bar in found)
    verdicts = ", ".join("met" if bar["met"] else "missed" for bar in found)
    return wanted or NONE, verdicts or NONE


def _explain(table: Table, record: Record) -> None:
    what = f"{record['case']}, {record['sparsity']:.0%} {record['pattern']}, {record['dtype']}"
    if "failed" in record:
        table.note(f"{what} could not be measured: {record['failed']}")
    for name, time in record["times"].items():
        if "missing" in time:
            table.note(f"{name} is missing in {record['dtype']}, {record['pattern']}: {time['missing']}")
        elif "wrong" in time:
            table.note(f"{name} is wrong on {what} (error {time['wrong']:.1e}), so it was not timed")


def memory_table(records: list[Record]) -> Table:
    """Bytes that stay, the peak of a step, and its time."""
    measured = [record for record in records if "failed" not in record]
    title = "Training a transformer with AdamW"
    if measured:
        one = measured[0]
        size = f"{one['blocks']} blocks, {one['width']} wide, {one['tokens']} tokens"
        title += f": {size}, {memory.SPARSITY:.0%} sparsity; MiB"
    header = ["model", "autocast", "weights", "gradients", "AdamW", "pattern", "together", "peak", "step ms"]
    table = Table(title, header, left=2)
    for record in records:
        autocast = "bf16" if record["autocast"] else "off"
        if "failed" in record:
            table.add(record["model"], autocast, *[NONE] * 7)
            table.note(f"{record['model']}, autocast {autocast}, could not be measured: {record['failed']}")
            continue
        sizes = [record[f"{part}_bytes"] for part in ("weights", "gradients", "optimizer", "pattern")]
        cells = [_mib(size) for size in (*sizes, sum(sizes), record["step_peak_bytes"])]
        table.add(record["model"], autocast, *cells, f"{record['step_ms']:.1f}")
    table.note("peak: all tensors in a step, activations included, which are the same size in all models.")
    return table


def training_tables(records: list[Record]) -> list[Table]:
    """For each network, the time of a step and memory, beside the dense one."""
    tables = []
    for network in dict.fromkeys(record["network"] for record in records):
        chosen = [record for record in records if record["network"] == network]
        batch = next((record["batch"] for record in chosen if "batch" in record), NONE)
        title = f"{network}, a training step of {batch} examples, autocast to bfloat16; MiB"
        header = ["model", "sparsity", "step ms", "speed-up", "held", "less", "peak", "less"]
        table = Table(title, header, left=1)
        dense = next((r for r in chosen if r["model"] == DENSE and "step_ms" in r), None)
        for record in chosen:
            sparsity = f"{record['sparsity']:.0%}"
            if "failed" in record:
                table.add(record["model"], sparsity, *[NONE] * 6)
                table.note(f"{record['model']}, {sparsity}, could not be measured: {record['failed']}")
                continue
            row = [record["model"], sparsity, f"{record['step_ms']:.1f}", _faster(dense, record)]
            for size in (memory.total, _peak):
                gain = NONE if dense is None else f"{size(dense) / size(record):.1f}x"
                row += [_mib(size(record)), gain]
            table.add(*row)
        tables.append(table)
    return tables


def _peak(record: Record) -> int:
    return record["peak_bytes"]


def _faster(dense: Record | None, record: Record) -> str:
    return NONE if dense is None else f"{dense['step_ms'] / record['step_ms']:.2f}"


def _mib(size: int | None) -> str:
    return NONE if size is None else f"{size / MIB:,.1f}"


def bar_table(sections: dict[str, list[Record]]) -> Table:
    """Every bar that was judged: how many of its records meet it, and the farthest below."""
    found: dict[str, list[Record]] = {}
    for record in sections.get("gpu", []):
        for bar in record["bars"]:
            found.setdefault(bar["bar"], []).append(bar)
    for bar in memory.judged(sections.get("gpu-memory", [])):
        found.setdefault(bar["bar"], []).append(bar)
    table = Table("Bars on this GPU", ["bar", "met", "farthest", "of", ""])
    for name, judged in found.items():
        worst = min(judged, key=_margin)
        met = sum(bar["met"] for bar in judged)
        show: Callable[[float], str] = SHOWN[worst["measure"]]
        verdict = "met" if met == len(judged) else "missed"
        table.add(name, f"{met}/{len(judged)}", show(worst["reached"]), show(worst["wanted"]), verdict)
    return table


def _margin(bar: Record) -> float:
    """Above 1 where the bar is met, however it is measured."""
    quotient = bar["reached"] / bar["wanted"]
    return 1 / quotient if bar["measure"] in ("microseconds", "passes") else quotient


def missing(sections: dict[str, list[Record]]) -> list[str]:
    """Lines about sparsekern's own ops that did not run, or ran wrong."""
    lines = []
    for record in sections.get("gpu", []):
        time = record["times"].get(SPARSE, {})
        reason = record.get("failed") or time.get("missing")
        if reason or "wrong" in time:
            pattern = f"{record['sparsity']:.0%} {record['pattern']}"
            what = f"{record['op']} {record['case']} {pattern} {record['dtype']}"
            lines.append(f"{what}: " + (f"missing: {reason}" if reason else f"wrong by {time['wrong']:.1e}"))
    return lines
