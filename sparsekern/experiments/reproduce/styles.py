"""How series look: told apart by lightness, dashes and markers, so that they also are without colour."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparsekern.experiments.reproduce.document import Curves, Panel, Points

# Hues that the common kinds of colour blindness tell apart; neighbours differ in lightness too.
_COLORS = ("#000000", "#d55e00", "#0072b2", "#56b4e9", "#882255", "#e69f00", "#009e73", "#8c8c8c")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

#: What the labels of two groups of points that belong together end in.
START, END = " start", " end"


@dataclass(frozen=True)
class Style:
    """The look of one label.

    Attributes
    ----------
    color : str
    dashes : str or tuple
        A matplotlib line style.
    marker : str
    """

    color: str
    dashes: str | tuple[int, tuple[float, ...]]
    marker: str


def style(index: int) -> Style:
    """The look of the label that comes ``index``-th; no two of the first 360 are equal."""
    return Style(
        _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)], _MARKERS[index % len(_MARKERS)]
    )


def base_label(label: str) -> str:
    """What a group of points and its counterpart have in common: the label without " start" or " end"."""
    for ending in (START, END):
        if label.endswith(ending):
            return label.removesuffix(ending)
    return label


def panel_labels(panel: Panel) -> list[str]:
    """The labels of a panel, in order, as the legend has them."""
    if isinstance(panel, Curves):
        return list(dict.fromkeys(series.label for series in panel.series))
    if isinstance(panel, Points):
        return list(dict.fromkeys(map(base_label, panel.groups)))
    return list(panel.eigenvalues)


def styles(panels: Iterable[Panel]) -> dict[str, Style]:
    """The look of every label: the same in all panels of a figure."""
    labels = dict.fromkeys(label for panel in panels for label in panel_labels(panel))
    return {label: style(index) for index, label in enumerate(labels)}
