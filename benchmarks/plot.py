"""One picture: speed-up over dense against sparsity, a panel for each shape."""

from __future__ import annotations

import io
import math
from typing import Any

from benchmarks.contenders import SPARSE
from benchmarks.report import KINDS, break_even_text, sweeps
from benchmarks.speed import break_even, speedup
from benchmarks.store import Results

COLUMNS = 4
# Told apart by dashes and markers, so that they also are without colour.
STYLES: dict[str, dict[str, Any]] = {
    "sparsekern, forward": {"color": "black", "marker": "o", "linewidth": 1.8},
    "sparsekern, backward": {"color": "black", "marker": "s", "linestyle": "--", "markerfacecolor": "white"},
    "torch CSR, forward": {"color": "0.5", "marker": "^", "linestyle": ":"},
    "masked-dense, forward": {"color": "0.5", "marker": "x", "linestyle": "-."},
}
Lines = dict[str, dict[float, float]]


def panels(results: Results) -> dict[tuple[str, str], Lines]:
    """For each kind and case, the speed-ups by sparsity of each line of `STYLES`."""
    swept = sweeps(results["sections"].get("breakeven", []))
    found: dict[tuple[str, str], Lines] = {}
    for kind in KINDS:
        for record in results["sections"].get(kind, []):
            lines = found.setdefault((kind, record["case"]), {})
            for name in record["times"]:
                gain = speedup(record, name)
                label = f"{name}, {record['direction']}"
                if label in STYLES and gain is not None:
                    lines.setdefault(label, {})[record["sparsity"]] = gain
    for key, points in swept.items():
        # The sweep is one measurement from end to end; the other points would be of another run.
        found.setdefault(key, {})[f"{SPARSE}, forward"] = points
    return {key: lines for key, lines in found.items() if lines}


def draw(results: Results, title: str, suffix: str) -> bytes:
    """The picture as ``"svg"`` or ``"png"``.

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        When there is nothing to draw.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = panels(results)
    if not found:
        raise ValueError("results: expected a section linear, conv or breakeven, got none")
    # One more for the legend.
    columns = min(COLUMNS, len(found) + 1)
    rows = math.ceil((len(found) + 1) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.5 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    cells = list(axes.flat)
    for axis, ((kind, case), lines) in zip(cells, found.items()):
        _panel(axis, f"{kind} {case}", lines)
    for axis in cells[len(found) :]:
        axis.set_axis_off()
    for axis in cells[max(0, len(found) - columns) : len(found)]:
        axis.xaxis.set_tick_params(labelbottom=True)
    handles = {
        line.get_label(): line for axis in cells for line in axis.get_lines() if line.get_label() in STYLES
    }
    cells[len(found)].legend(handles.values(), handles, loc="center", frameon=False, fontsize=9)
    figure.suptitle(title)
    figure.supxlabel("sparsity (%)")
    figure.supylabel("speed-up over dense PyTorch (log scale)")
    content = io.BytesIO()
    metadata = {"Date": None} if suffix == "svg" else None
    # The same figures give the same file.
    with rc_context({"svg.hashsalt": "sparsekern"}):
        figure.savefig(content, format=suffix, dpi=130, metadata=metadata)
    return content.getvalue()


def _panel(axis: Any, title: str, lines: Lines) -> None:
    for label, style in STYLES.items():
        points = sorted(lines.get(label, {}).items())
        if points:
            axis.plot(
                [100 * s for s, _ in points], [g for _, g in points], label=label, markersize=4, **style
            )
    axis.set_title(title, fontsize=9)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.grid(color="0.9", linewidth=0.6)
    axis.axhline(1, color="black", linewidth=0.8)
    _mark_break_even(axis, lines.get(f"{SPARSE}, forward", {}))


def _mark_break_even(axis: Any, points: dict[float, float]) -> None:
    # A few high sparsities say nothing about where the line comes from.
    if len(points) < 5:
        return
    where, sparsity = break_even(points)
    text = f"break-even {break_even_text(where, sparsity)}"
    if where == "at":
        axis.axvline(100 * sparsity, color="black", linewidth=0.8, linestyle=(0, (1, 2)))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axis.annotate(text, (0.04, 0.93), xycoords="axes fraction", fontsize=8, va="top", bbox=box)
