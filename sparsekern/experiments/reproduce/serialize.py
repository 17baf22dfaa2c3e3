"""A report as data for JSON, and back."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sparsekern.experiments.reproduce.document import (
    Curves,
    Figure,
    Panel,
    Points,
    Report,
    RunEntry,
    Section,
    Series,
    Spectrum,
    Table,
)

DIGITS = 6


def as_data(report: Report) -> dict[str, Any]:
    """Dicts, lists, text and numbers of six digits; None for what is not finite, which JSON cannot say."""
    return _plain(asdict(report))


def from_data(data: Mapping[str, Any]) -> Report:
    """The report that :func:`as_data` was given, its numbers rounded and NaN where they were not finite.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the data are of another kind.
    """
    sections = [
        Section(
            section["title"],
            section["text"],
            [Table(**table) for table in section["tables"]],
            [Figure(f["name"], f["caption"], [_panel(p) for p in f["panels"]]) for f in section["figures"]],
        )
        for section in data["sections"]
    ]
    runs = [RunEntry(**entry) for entry in data["runs"]]
    return Report(data["title"], data["quick"], data["summary"], sections, runs)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    # Numbers of NumPy included.
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def _panel(data: Mapping[str, Any]) -> Panel:
    """A panel of the kind whose fields these are."""
    if "series" in data:
        return Curves(**{**data, "series": [_series(series) for series in data["series"]]})
    if "groups" in data:
        groups = {name: [tuple(_floats(p)) for p in points] for name, points in data["groups"].items()}
        return Points(data["title"], groups, [tuple(path) for path in data["paths"]])
    return Spectrum(data["title"], {name: _floats(found) for name, found in data["eigenvalues"].items()})


def _series(data: Mapping[str, Any]) -> Series:
    return Series(data["label"], _floats(data["x"]), _floats(data["y"]), _floats(data["spread"]))


def _floats(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
