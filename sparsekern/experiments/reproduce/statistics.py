"""Means of a few runs, and whether they agree with printed ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsekern.experiments.reproduce.paper import Printed

RULE = (
    "A value agrees if it is no further from the printed one than both standard deviations (divided by n: "
    "the printed 35 and 42 are those of one and two failures in five) and one unit of the last digit printed "
    "together."
)


@dataclass(frozen=True)
class Sample:
    """Values of repeated runs."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Sample:
        """Of the values that there are."""
        return cls(tuple(value for value in values if value is not None))

    @property
    def mean(self) -> float:
        """NaN if there is none."""
        return sum(self.values) / len(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """``sqrt(sum((x - mean) ** 2) / n)``, as the paper's are; 0 for one value."""
        if len(self.values) < 2:
            return 0.0
        return math.sqrt(sum((x - self.mean) ** 2 for x in self.values) / len(self.values))

    def text(self, digits: int = 2) -> str:
        """``mean ± std (n)``."""
        if not self.values:
            return "not run"
        spread = f" ± {self.std:.{digits}f}" if len(self.values) > 1 else ""
        return f"{self.mean:.{digits}f}{spread} ({len(self.values)})"


def printed_text(printed: Printed | None, digits: int = 2) -> str:
    """``mean ± std`` as the paper has it."""
    if printed is None:
        return ""
    # As many digits as are printed: a spread that is a whole number has none.
    places = 0 if isinstance(printed.std, int) else digits
    spread = "" if printed.std is None else f" ± {printed.std:.{places}f}"
    return f"{printed.mean:.{digits}f}{spread}"


def verdict(sample: Sample, printed: Printed | None, digits: int = 2) -> str:
    """``"agrees"`` by `RULE`, or by how much the mean differs; nothing where there is nothing to compare."""
    if printed is None or not sample.values:
        return ""
    difference = sample.mean - printed.mean
    if abs(difference) <= sample.std + (printed.std or 0.0) + 10.0**-digits:
        return "agrees"
    return f"differs: {difference:+.{digits}f}"
