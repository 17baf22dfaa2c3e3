"""What a report is made of: sections with text, tables and figures, as data.

All of it is plain numbers and text, so that it goes into ``results.json`` as it is and comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A table of text; numbers are formatted already.

    Attributes
    ----------
    headers : list of str
    rows : list of list of str
        As long as `headers`; the first column says what a row is.
    notes : list of str
        Sentences below it.
    """

    headers: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Series:
    """A curve, with its spread where it is a mean.

    Attributes
    ----------
    label : str
    x, y : list of float
    spread : list of float
        One standard deviation to either side, as long as `y`; empty for none.
    """

    label: str
    x: list[float]
    y: list[float]
    spread: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Curves:
    """Axes with curves.

    Attributes
    ----------
    title, x_label, y_label : str
        Labels say the unit, or that there is none.
    series : list of Series
    log_x, log_y : bool
    zero_line : bool
        Draws a thin line at y = 0.
    """

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    log_x: bool = False
    log_y: bool = False
    zero_line: bool = False


@dataclass(frozen=True)
class Points:
    """Axes with points of a plane whose axes have no meaning of their own, as of multidimensional scaling.

    Attributes
    ----------
    title : str
    groups : dict of str to list of (float, float)
    paths : list of (str, int, str, int)
        From point i of one group to point j of another: a thin arrow.
    """

    title: str
    groups: dict[str, list[tuple[float, float]]]
    paths: list[tuple[str, int, str, int]] = field(default_factory=list)


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
        Of its files.
    caption : str
    panels : list of Curves, Points or Spectrum
    """

    name: str
    caption: str
    panels: list[Panel]


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
class Report:
    """All of it.

    Attributes
    ----------
    title : str
    quick : bool
        Whether runs were cut short: the report says so at the top and in every caption.
    summary : list of str
        Paragraphs below the title.
    sections : list of Section
    """

    title: str
    quick: bool
    summary: list[str]
    sections: list[Section]
