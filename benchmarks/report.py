"""The tables of each section, from its records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import bars
from benchmarks.cases import DIRECTIONS
from benchmarks.contenders import DENSE, SPARSE
from benchmarks.dynamic import STATIC, UPDATE_EVERY
from benchmarks.gpu.tables import memory_table as memory_of_training
from benchmarks.gpu.tables import op_tables, training_tables
from benchmarks.overhead import MODES
from benchmarks.speed import break_even, speedup
from benchmarks.store import Results
from benchmarks.table import Table
from benchmarks.topology import PASS, SPARSITY

Record = dict[str, Any]
NONE = "-"
KINDS = {"linear": "Linear layers", "conv": "Convolutions"}
MIB = 2**20


def milliseconds(time: Record | None) -> str:
    """The median with three digits, or why there is none."""
    if time is None:
        return NONE
    if "wrong" in time:
        return "wrong"
    return digits(time["median_ms"]) if "median_ms" in time else NONE


def digits(number: float) -> str:
    """Three significant digits, without an exponent."""
    decimals = 3 if number < 1 else 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{decimals}f}"


def ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def verdict(value: float | None, bar: float | None) -> str:
    if bar is None or value is None:
        return NONE
    return "met" if value >= bar else "missed"


def layer_tables(kind: str, records: list[Record]) -> list[Table]:
    """Forward and backward: dense and sparse in milliseconds, all as speed-up over dense."""
    names = list(dict.fromkeys(name for record in records for name in record["times"]))
    others = [name for name in names if name not in (DENSE, SPARSE)]
    tables = []
    for direction in DIRECTIONS:
        what = "forward" if direction == "forward" else "backward (both gradients)"
        title = f"{KINDS[kind]}, {what}: milliseconds, and speed-up over dense PyTorch"
        header = ["case", "sparsity", "dense ms", "sparsekern ms", "speed-up", "bar", "", *others]
        table = Table(title, header)
        chosen = [record for record in records if record["direction"] == direction]
        for record in sorted(chosen, key=lambda record: _order(chosen, record)):
            times, gain = record["times"], speedup(record)
            bar = bars.speedup_bar(kind, direction, record["case"], record["sparsity"])
            row = [record["case"], f"{record['sparsity']:.0%}"]
            row += [milliseconds(times.get(DENSE)), milliseconds(times.get(SPARSE))]
            row += [ratio(gain), ratio(bar), verdict(gain, bar)]
            table.add(*row, *(_other(record, name) for name in others))
            _explain(table, record)
        tables.append(table)
    return tables


def _order(records: list[Record], record: Record) -> tuple[int, float]:
    cases = list(dict.fromkeys(record["case"] for record in records))
    return cases.index(record["case"]), record["sparsity"]


def _other(record: Record, name: str) -> str:
    return "wrong" if "wrong" in record["times"].get(name, {}) else ratio(speedup(record, name))


def _explain(table: Table, record: Record) -> None:
    for name, time in record["times"].items():
        if "missing" in time:
            table.note(f"{name} is missing: {time['missing']}")
        elif "wrong" in time:
            what = f"{record['case']} at {record['sparsity']:.0%}"
            table.note(f"{name} is wrong on {what} (error {time['wrong']:.1e}), so it was not timed")


def sweeps(records: list[Record]) -> dict[tuple[str, str], dict[float, float]]:
    """Speed-up by sparsity, for each kind and case."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for record in records:
        gain = speedup(record)
        if gain is not None:
            found.setdefault((record["kind"], record["case"]), {})[record["sparsity"]] = gain
    return found


def break_even_table(records: list[Record]) -> Table:
    """Speed-up at every sparsity of the sweep, and where it reaches 1."""
    sparsities = sorted({record["sparsity"] for record in records})
    header = ["case", *(f"{s:.0%}" for s in sparsities), "break-even", "bar", ""]
    table = Table("Forward speed-up over dense by sparsity, and the sparsity from which on it pays", header)
    for (kind, case), points in sweeps(records).items():
        where, sparsity = break_even(points)
        bar = bars.BREAK_EVEN.get(kind, {}).get(case)
        met = NONE if bar is None else "met" if where != "above" and sparsity <= bar else "missed"
        cells = [ratio(points.get(s)) for s in sparsities]
        table.add(case, *cells, break_even_text(where, sparsity), NONE if bar is None else f"{bar:.0%}", met)
    return table


def break_even_text(where: str, sparsity: float) -> str:
    return f"{sparsity:.0%}" if where == "at" else f"{where} {sparsity:.0%}"


def memory_table(records: list[Record]) -> Table:
    """Bytes of what stays from step to step, of the process, and of its peaks."""
    one = records[0]
    size = f"{one['layers']} x {one['width']} wide, batch {one['batch']}"
    sparsity = max(record["sparsity"] for record in records)
    title = f"Memory of a multilayer perceptron, {size}, float32, AdamW, {sparsity:.0%} sparsity: MiB"
    table = Table(title, ["what", *(record["model"] for record in records), "dense / sparsekern"])
    rows = {
        "weights": ["weights"],
        "gradients": ["gradients"],
        "AdamW state": ["optimizer"],
        "pattern or mask": ["pattern"],
        "all of these": ["weights", "gradients", "optimizer", "pattern"],
        "resident after a step": ["resident"],
        "the same, less the C library's free memory": ["resident_trimmed"],
        "peak of a step": ["step_peak"],
        "peak while building": ["building_peak"],
    }
    for what, fields in rows.items():
        sums = {r["model"]: sum(r[f"{field}_bytes"] for field in fields) for r in records}
        table.add(what, *(f"{v / MIB:,.1f}" for v in sums.values()), _quotient(sums))
    base = max(record["process_bytes"] for record in records)
    table.note(
        "The last four are of the process, over what it held before the model was built "
        f"({base / MIB:.0f} MiB or less, most of it PyTorch's own code); a step's peak includes activations "
        "and temporaries."
    )
    return table


def _quotient(sums: dict[str, float]) -> str:
    over, under = sums.get(DENSE), sums.get(SPARSE)
    return f"{over / under:.1f}" if over and under else NONE


def lenet_tables(records: list[Record]) -> list[Table]:
    """The step, and its parts."""
    tables = []
    for record in records:
        title = f"LeNet-5 training step, batch {record['batch']}, {record['sparsity']:.0%} sparsity"
        table = Table(title, ["model", "ms", "speed-up", "bar", ""])
        for name, time in record["times"].items():
            gain, bar = speedup(record, name), bars.LENET5_STEP if name == SPARSE else None
            table.add(name, milliseconds(time), ratio(gain), ratio(bar), verdict(gain, bar))
        _explain(table, record)
        parts = list(next(iter(record["shares"].values()), {}))
        share = Table("Its parts, in percent of each model's step (torch.profiler)", ["model", *parts])
        for name, found in record["shares"].items():
            share.add(name, *(f"{100 * found[part]:.0f}" for part in parts))
        tables += [table, share]
    return tables


def topology_table(records: list[Record]) -> Table:
    """Every way in milliseconds; sparsekern in passes over the scores, and against `torch.topk`."""
    names = list(dict.fromkeys(name for record in records for name in record["times"]))
    header = ["case", *(f"{name} ms" for name in names), "passes", "bar", "", "over topk", "bar", ""]
    table = Table("One update of a layer's topology", header)
    for record in records:
        gain, passes = speedup(record, over="topk"), speedup(record, PASS, SPARSE)
        cells = [milliseconds(record["times"].get(name)) for name in names]
        row = [ratio(passes), ratio(bars.TOPOLOGY_PASSES)]
        row += [NONE if passes is None else "met" if passes <= bars.TOPOLOGY_PASSES else "missed"]
        row += [ratio(gain), ratio(bars.TOPOLOGY), verdict(gain, bars.TOPOLOGY)]
        table.add(record["case"], *cells, *row)
        _explain(table, {**record, "sparsity": SPARSITY})
    table.note(
        "passes: sparsekern's time in units of pass, which is gradient.abs(); copy has its memory already."
    )
    return table


def dynamic_table(records: list[Record]) -> Table:
    """A step, what an update adds to one, and what that makes of a run."""
    header = ["network", "method", "step ms", "update ms", f"adds, every {UPDATE_EVERY}", "bar", ""]
    table = Table("Training with updates of the masks", header)
    for record in records:
        static = record["times"][STATIC]["step_ms"]
        for method, time in record["times"].items():
            added = time["update_ms"] / (UPDATE_EVERY * static)
            bar = bars.DYNAMIC_OVERHEAD if method == "RigL" else None
            case = f"{record['case']}, {record['sparsity']:.0%}, batch {record['batch']}"
            share = NONE if method == STATIC else f"{added:.1%}"
            met = NONE if bar is None else "met" if added <= bar else "missed"
            update = NONE if method == STATIC else digits(time["update_ms"])
            table.add(
                case, method, digits(time["step_ms"]), update, share, f"{bar:.0%}" if bar else NONE, met
            )
    return table


def overhead_table(records: list[Record]) -> Table:
    table = Table("Cost of one call on a tiny input: microseconds", ["call", *MODES])
    for record in records:
        times = [record["times"].get(mode) for mode in MODES]
        table.add(record["call"], *(NONE if t is None else f"{1e3 * t['median_ms']:.1f}" for t in times))
    return table


TABLES: dict[str, Callable[[list[Record]], list[Table]]] = {
    "linear": lambda records: layer_tables("linear", records),
    "conv": lambda records: layer_tables("conv", records),
    "breakeven": lambda records: [break_even_table(records)],
    "memory": lambda records: [memory_table(records)],
    "lenet": lenet_tables,
    "topology": lambda records: [topology_table(records)],
    "dynamic": lambda records: [dynamic_table(records)],
    "overhead": lambda records: [overhead_table(records)],
    "gpu-memory": lambda records: [memory_of_training(records)],
    "gpu-training": training_tables,
    "gpu": op_tables,
}


def tables(results: Results, section: str) -> list[Table]:
    records = results["sections"].get(section)
    return TABLES[section](records) if records else []
