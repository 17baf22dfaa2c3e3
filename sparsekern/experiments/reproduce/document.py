"""What a report is made of: sections with text, tables and figures, as data.

All of it is plain numbers and text, so that it goes into ``results.json`` as it is and comes back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A table of text; numbers are formatted already.

    Attributes
    ----------
    headers : list of str
    rows : list of list of str
        As long as `headers`; the first column says what a row is. A cell that begins with "agrees" or
        "differs" gets a mark.
    notes : list of str
        Sentences below it.

    Raises
    ------
    ValueError
        If a row is of another length.
    """

    headers: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.headers):
                raise ValueError(f"rows[{index}]: expected {len(self.headers)} cells, got {len(row)}")


@dataclass(frozen=True)
class Series:
    """A curve, with its spread where it is a mean.

    Attributes
    ----------
    label : str
    x, y : list of float
    spread : list of float
        One standard deviation to either side, as long as `y`; empty for none.

    Raises
    ------
    ValueError
        If lengths differ.
    """

    label: str
    x: list[float]
    y: list[float]
    spread: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.y) != len(self.x):
            raise ValueError(f"y: expected {len(self.x)} values, as x has, got {len(self.y)}")
        if len(self.spread) not in (0, len(self.y)):
            raise ValueError(
                f"spread: expected {len(self.y)} values, as y has, or none, got {len(self.spread)}"
            )


@dataclass(frozen=True)
class Curves:
    """Axes with curves.

    Attributes
    ----------
    title, x_label, y_label : str
        Labels say the unit, or that there is none.
    series : list of Series
    sparsity_x : bool
        x is a sparsity: ticks are at its values, spaced by the logarithm of what is left, ``1 - x``.
    log_y : bool
    zero_line : bool
        Draws a thin line at y = 0.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    sparsity_x: bool = False
    log_y: bool = False
    zero_line: bool = False


@dataclass(frozen=True)
class Points:
    """Axes with points of a plane whose axes have no meaning of their own, as of multidimensional scaling.

    Attributes
    ----------
    title : str
    groups : dict of str to list of (float, float)
        Groups whose labels differ in their ends " start" and " end" alone look alike, with open and filled
        markers.
    paths : list of (str, int, str, int)
        From point i of one group to point j of another: a thin arrow.

    Raises
    ------
    ValueError
        If a path names a point that is not there.
    """

    title: str
    groups: dict[str, list[tuple[float, float]]]
    paths: list[tuple[str, int, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for first, i, last, j in self.paths:
            for group, index in ((first, i), (last, j)):
                if not 0 <= index < len(self.groups.get(group, ())):
                    raise ValueError(f"paths: expected points of the groups, got {index} of {group!r}")


@dataclass(frozen=True)
class Spectrum:
    """Axes with the eigenvalues of symmetric matrices, as densities on a logarithmic axis.

    Attributes
    ----------
    title : str
    eigenvalues : dict of str to list of float
    """

    title: str
    eigenvalues: dict[str, list[float]]


Panel = Curves | Points | Spectrum


@dataclass(frozen=True)
class Figure:
    """Panels side by side.

    Attributes
    ----------
    name : str
        Of its files: letters, digits, ``-`` and ``_``.
    caption : str
    panels : list of Curves, Points or Spectrum

    Raises
    ------
    ValueError
        If the name is of other characters.
    """

    name: str
    caption: str
    panels: list[Panel]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"name: expected letters, digits, - and _, got {self.name!r}")


@dataclass(frozen=True)
class Section:
    """A heading and what is below it, in this order: text, tables, figures.

    Attributes
    ----------
    title : str
    text : list of str
        Paragraphs; `code` in backticks.
    tables : list of Table
    figures : list of Figure
    """

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class RunEntry:
    """One run, for who wants other statistics than the tables'.

    Attributes
    ----------
    folder : str
    network, role, init : str
    seed : int
    outcome : str
        ``"finished"``, ``"diverged"`` or ``"failed"``.
    test_accuracy, seconds : float or None
        Of finished ones; the accuracy is a fraction.
    """

    folder: str
    network: str
    role: str
    init: str
    seed: int
    outcome: str
    test_accuracy: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes
    ----------
    title : str
    quick : bool
        Whether runs were cut short: the report says so at the top, in every caption and every picture.
    summary : list of str
        Paragraphs below the title.
    sections : list of Section
    runs : list of RunEntry
        What all of it is of.

    Raises
    ------
    ValueError
        If two figures have one name.
    """

    title: str
    quick: bool
    summary: list[str]
    sections: list[Section]
    runs: list[RunEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [figure.name for figure in self.figures]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"figures: expected names of their own, got {', '.join(twice)} twice")

    @property
    def figures(self) -> list[Figure]:
        """The figures of all sections."""
        return [figure for section in self.sections for figure in section.figures]
