"""The results file: what was measured last of each thing, and which run each figure is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT = 1
#: section -> the fields that name a record; a new measurement replaces the record of the same name.
KEYS = {
    "linear": ("case", "direction", "sparsity"),
    "conv": ("case", "direction", "sparsity"),
    "breakeven": ("kind", "case", "sparsity"),
    "memory": ("model",),
    "lenet": ("sparsity", "batch"),
    "topology": ("case",),
    "dynamic": ("case",),
    "overhead": ("call",),
    "gpu-memory": ("model", "autocast"),
    "gpu-training": ("network", "model", "sparsity"),
    "gpu": ("op", "case", "pattern", "sparsity", "dtype"),
}
Results = dict[str, Any]


def load(path: Path) -> Results | None:
    """The results in a file, None where there is none.

    Raises
    ------
    ValueError
        When it is not a results file of this format.
    """
    if not path.exists():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    if results.get("format") != FORMAT:
        raise ValueError(f"{path}: expected results of format {FORMAT}, got {results.get('format')!r}")
    return results


def belongs(results: Results, machine: dict[str, Any]) -> bool:
    """Whether figures of `machine` may stand beside those of `results`."""
    return results["machine"] == machine


def merge(
    old: Results | None,
    machine: dict[str, Any],
    run: dict[str, Any],
    section: str,
    records: list[dict[str, Any]],
    *,
    quick: bool = False,
) -> Results:
    """`old` with the records of a run in place of its own of the same names.

    Parameters
    ----------
    old : dict or None
        Left out altogether when it is of another machine.
    machine, run : dict
        From `machine.describe` and `machine.provenance`.
    section : str
        One of `KEYS`.
    records : list of dict
        Each gets the field ``run``.
    """
    if old is None or not belongs(old, machine):
        old = {"format": FORMAT, "quick": quick, "machine": machine, "runs": {}, "sections": {}}
    key = run["date"]
    fresh = {_name(section, record): {**record, "run": key} for record in records}
    kept = {_name(section, record): record for record in old["sections"].get(section, [])}
    sections = {**old["sections"], section: list({**kept, **fresh}.values())}
    used = {record["run"] for members in sections.values() for record in members}
    runs = {name: about for name, about in {**old["runs"], key: run}.items() if name in used}
    return {**old, "runs": runs, "sections": sections}


def _name(section: str, record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[field] for field in KEYS[section])


def dumps(results: Results) -> str:
    """JSON with one record a line, so that a difference between two versions can be read."""

    def lines(items: dict[str, str], indent: str, brackets: str) -> str:
        body = ",\n".join(f"{indent}  {value}" for value in items.values())
        return f"{brackets[0]}\n{body}\n{indent}{brackets[1]}"

    def pair(name: str, value: str) -> str:
        return f"{json.dumps(name)}: {value}"

    sections = {
        name: pair(name, lines({str(i): json.dumps(r) for i, r in enumerate(records)}, "    ", "[]"))
        for name, records in results["sections"].items()
    }
    runs = {name: pair(name, json.dumps(run)) for name, run in results["runs"].items()}
    top = {
        "format": pair("format", str(results["format"])),
        "quick": pair("quick", json.dumps(results["quick"])),
        "machine": pair("machine", json.dumps(results["machine"])),
        "runs": pair("runs", lines(runs, "  ", "{}")),
        "sections": pair("sections", lines(sections, "  ", "{}")),
    }
    return lines(top, "", "{}") + "\n"
