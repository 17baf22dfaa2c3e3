"""Drawing one panel on matplotlib axes; each function says which labels it had data for."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsekern.experiments.reproduce.document import Curves, Panel, Points, Series, Spectrum
from sparsekern.experiments.reproduce.styles import START, Style, base_label

#: Markers on a curve with more points than twice as many.
MARKERS = 7
#: Decades of eigenvalues, below the largest magnitude, that a logarithmic axis spreads out.
DECADES = 5
#: Bins of a spectrum for each decade.
BINS = 6
_EMPTY = 0.7  # where the line of an empty bin lies: below one eigenvalue


def draw_panel(axes: Any, panel: Panel, styles: Mapping[str, Style]) -> set[str]:
    """Draw a panel of any kind.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    panel : Curves, Points or Spectrum
    styles : mapping of str to Style
        The look of each label.

    Returns
    -------
    set of str
        The labels that have at least one finite value.
    """
    axes.set_title(textwrap.fill(plain(panel.title), 46), loc="left")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    draw = {Curves: _curves, Points: _points, Spectrum: _spectrum}[type(panel)]
    shown = draw(axes, panel, styles)
    if not shown:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="0.4")
    return shown


def plain(text: str) -> str:
    """Text that matplotlib shows as it is, dollars included."""
    return text.replace("$", r"\$")


def _curves(axes: Any, panel: Curves, styles: Mapping[str, Style]) -> set[str]:
    axes.set(xlabel=plain(panel.x_label), ylabel=plain(panel.y_label))
    if panel.zero_line and not panel.log_y:
        axes.axhline(0, color="0.35", linewidth=0.8, zorder=1.5)
    shown = set()
    for index, series in enumerate(panel.series):
        x, y, spread = _values(series, panel)
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.any():
            continue
        shown.add(series.label)
        look = styles[series.label]
        if spread is not None:
            # A logarithmic axis has no place for an end at or below 0, and a band to its floor would mislead.
            shows = (y - spread > 0) | (not panel.log_y)
            band = {"color": look.color, "alpha": 0.16, "linewidth": 0}
            axes.fill_between(x, y - spread, y + spread, where=shows, **band)
        axes.plot(
            x,
            y,
            color=look.color,
            linestyle=look.dashes,
            marker=look.marker,
            markevery=_marked(_spaced(x) if panel.sparsity_x else x, finite, index / len(panel.series)),
        )
    # After the data: the limits of a logarithmic axis come from what is positive.
    if shown and panel.log_y:
        axes.set_yscale("log")
    if shown and panel.sparsity_x:
        _space_sparsities(axes, panel)
    return shown


def _spaced(sparsity: np.ndarray) -> np.ndarray:
    """Where a sparsity is on its axis: as far as what is left has fallen, on a logarithmic scale."""
    return -np.log1p(-np.minimum(sparsity, 1 - 1e-12))


def _sparsity_at(position: np.ndarray) -> np.ndarray:
    """The inverse of `_spaced`."""
    return -np.expm1(-position)


def _space_sparsities(axes: Any, panel: Curves) -> None:
    ticks = sorted({x for series in panel.series for x in series.x if 0 <= x < 1})
    axes.set_xscale("function", functions=(_spaced, _sparsity_at))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    # The usual margin would go beyond 1, which is infinitely far.
    first, last = _spaced(np.asarray([ticks[0], ticks[-1]]))
    margin = 0.04 * (last - first or 1)
    axes.set_xlim(*_sparsity_at(np.asarray([first - margin, last + margin])))


def _values(series: Series, panel: Curves) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """x, y and spread, NaN where an axis has no place for them: a gap in the line."""
    x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
    x = np.where(np.isfinite(x) & ((x < 1) | (not panel.sparsity_x)), x, np.nan)
    y = np.where(np.isfinite(y) & ((y > 0) | (not panel.log_y)), y, np.nan)
    if not series.spread:
        return x, y, None
    spread = np.asarray(series.spread, np.float64)
    return x, y, np.where(np.isfinite(spread), spread, 0)


def _marked(position: np.ndarray, finite: np.ndarray, phase: float) -> list[int]:
    """The points of a curve that carry its marker: some, evenly along the axis, between those of the others.

    A point without a neighbour is always among them: no line shows it.
    """
    indices = np.flatnonzero(finite)
    if len(indices) <= 2 * MARKERS:
        return indices.tolist()
    low, high = position[indices].min(), position[indices].max()
    wanted = low + (high - low) * (np.arange(MARKERS) + phase) / MARKERS
    nearest = indices[np.abs(position[indices][:, None] - wanted).argmin(axis=0)]
    padded = np.pad(finite, 1)
    alone = np.flatnonzero(finite & ~padded[:-2] & ~padded[2:])
    return sorted({*nearest.tolist(), *alone.tolist()})


def _points(axes: Any, panel: Points, styles: Mapping[str, Style]) -> set[str]:
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel("distances to scale; directions mean nothing")
    axes.margins(0.08)
    groups = {label: np.asarray(points, np.float64).reshape(-1, 2) for label, points in panel.groups.items()}
    for path in panel.paths:
        _arrow(axes, groups, path, styles)
    shown = set()
    for label, points in groups.items():
        points = points[np.isfinite(points).all(axis=1)]
        if not len(points):
            continue
        shown.add(base_label(label))
        look = styles[base_label(label)]
        filling = "white" if label.endswith(START) else look.color
        axes.plot(
            *points.T,
            linestyle="none",
            color=look.color,
            marker=look.marker,
            markersize=6.5,
            markerfacecolor=filling,
        )
    return shown


def _arrow(
    axes: Any,
    groups: Mapping[str, np.ndarray],
    path: tuple[str, int, str, int],
    styles: Mapping[str, Style],
) -> None:
    first, i, last, j = path
    start, end = groups[first][i], groups[last][j]
    if np.isfinite([start, end]).all():
        # The ends stay clear of the markers.
        shape = {"arrowstyle": "-|>", "linewidth": 0.8, "shrinkA": 4, "shrinkB": 4, "mutation_scale": 7}
        color = styles[base_label(last)].color
        axes.annotate("", end, start, arrowprops={**shape, "color": color, "alpha": 0.7})


def _spectrum(axes: Any, panel: Spectrum, styles: Mapping[str, Style]) -> set[str]:
    """Eigenvalues counted in bins of equal width on an axis that is linear near 0 and logarithmic beyond.

    Nearly all eigenvalues of a Hessian are about 0; what matters are the few that are not, so both axes show
    single eigenvalues. One bin has 0 in its middle: rounding errors of either sign fall into one.
    """
    found = {name: np.asarray(values, np.float64) for name, values in panel.eigenvalues.items()}
    found = {name: values[np.isfinite(values)] for name, values in found.items()}
    found = {name: values for name, values in found.items() if len(values)}
    axes.set_ylabel("eigenvalues in a bin")
    if not found:
        axes.set_xlabel("eigenvalue")
        return set()
    largest = max(np.abs(values).max() for values in found.values())
    exponent = (math.floor(math.log10(largest)) if largest > 0 else 0) - DECADES + 1
    threshold = 10.0**exponent
    scaled = {name: _scale(values / threshold) for name, values in found.items()}
    # A bin's edges are at odd multiples of half its width, and there is an empty one at either end.
    low = math.floor(min(values.min() for values in scaled.values()) * BINS - 0.5) - 0.5
    high = math.ceil(max(values.max() for values in scaled.values()) * BINS + 0.5) + 0.5
    edges = np.arange(low, high + 0.5) / BINS
    for name, values in scaled.items():
        look = styles[name]
        counts = np.maximum(np.histogram(values, edges)[0], _EMPTY)
        axes.stairs(counts, edges, baseline=None, color=look.color, linestyle=look.dashes, linewidth=1.3)
        ends = np.array([values.min(), values.max()])
        heights = counts[np.searchsorted(edges, ends, side="right") - 1]
        axes.plot(ends, heights, linestyle="none", color=look.color, marker=look.marker)
    axes.set_yscale("log")
    axes.set_ylim(bottom=_EMPTY)
    axes.set_xlim(edges[0], edges[-1])
    _decade_ticks(axes, edges[0], edges[-1], exponent)
    limit = rf"$\pm 10^{{{exponent}}}$"
    axes.set_xlabel(
        f"eigenvalue (linear within {limit}, logarithmic beyond)\nmarkers: the least and the largest"
    )
    return set(found)


def _scale(values: np.ndarray) -> np.ndarray:
    """Where values of a symmetric logarithmic axis lie: as they are up to 1, then a unit for each decade."""
    magnitude = np.maximum(np.abs(values), 1)
    return np.where(np.abs(values) <= 1, values, np.sign(values) * (1 + np.log10(magnitude)))


def _decade_ticks(axes: Any, low: float, high: float, exponent: int) -> None:
    """Tick labels at 0 and powers of ten, every second one if there are many."""
    places = range(math.ceil(low), math.floor(high) + 1)
    step = math.ceil(len(places) / 9)
    ticks = [place for place in places if place % step == 0]
    labels = [
        "0" if tick == 0 else rf"${'-' if tick < 0 else ''}10^{{{exponent + abs(tick) - 1}}}$"
        for tick in ticks
    ]
    axes.set_xticks(ticks, labels)
