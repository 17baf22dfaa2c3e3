"""Figures as pictures: panels, one legend below them, and files that are the same each time."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.reproduce.document import Figure, Panel, Points
from sparsekern.experiments.reproduce.panels import draw_panel, plain
from sparsekern.experiments.reproduce.styles import END, START, Style, panel_labels, styles
from sparsekern.experiments.reproduce.svg import compact
from sparsekern.files import write_atomically

if TYPE_CHECKING:
    import matplotlib.figure

COLUMNS = 3
_HEIGHT = 3.1  # inches, of a panel
_WIDTHS = {1: 6.4, 2: 9.6, 3: 12.6}  # inches, of a figure by columns
_DPI = 140
_SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": "0.35",
    "xtick.color": "0.25",
    "ytick.color": "0.25",
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "lines.markeredgewidth": 1.2,
    # Letters as outlines look alike everywhere; with a fixed salt, ids are the same every time.
    "svg.fonttype": "path",
    "svg.hashsalt": "sparsekern",
}
_NO_METADATA = {"svg": dict.fromkeys(["Date", "Creator", "Format", "Type"]), "png": {"Software": None}}


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises
    ------
    ExperimentError
        If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ExperimentError(
            "needs the package matplotlib, of the extra [paper]: pip install -e '.[paper]'"
        ) from None


def draw(figure: Figure, quick: bool = False) -> matplotlib.figure.Figure:
    """Draw a figure without a display and without touching matplotlib's state.

    Panels are side by side, in rows of three at most (four: two by two). A label looks the same in all of
    them, and one legend below has it once. Values that are not finite, or not positive on a logarithmic axis,
    leave gaps.

    Parameters
    ----------
    figure : Figure
    quick : bool
        Says "quick run" in a corner.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ExperimentError
        If matplotlib is not installed.
    """
    require_matplotlib()
    with _settings():
        return _draw(figure, quick)


def write_figure(figure: Figure, folder: Path, quick: bool = False) -> tuple[Path, Path]:
    """Draw a figure into ``folder``, each file as a whole or not at all; equal figures give equal bytes.

    Returns
    -------
    tuple of Path
        ``NAME.svg`` and ``NAME.png``.

    Raises
    ------
    ExperimentError
        If matplotlib is not installed.
    OSError
        If a file cannot be written.
    """
    require_matplotlib()
    paths = []
    for suffix in ("svg", "png"):
        with _settings():
            # Laying out depends on the format's letters, and on where it starts from: each starts anew.
            content = io.BytesIO()
            drawn = _draw(figure, quick)
            drawn.savefig(content, format=suffix, dpi=_DPI, metadata=_NO_METADATA[suffix])
        data = content.getvalue()
        if suffix == "svg":
            data = compact(data.decode()).encode()
        path = folder / f"{figure.name}.{suffix}"
        write_atomically(path, data)
        paths.append(path)
    return paths[0], paths[1]


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever the user's own are, which come back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _draw(figure: Figure, quick: bool) -> matplotlib.figure.Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    count = max(1, len(figure.panels))
    columns = 2 if count == 4 else min(COLUMNS, count)
    rows = math.ceil(count / columns)
    width = _WIDTHS[columns]
    looks = styles(figure.panels)
    legend_columns, legend_rows = _legend_shape(list(looks), width)
    # What does not depend on the panels' height: the legend, and a line for the stamp.
    height = rows * _HEIGHT + 0.6 + 0.2 * legend_rows
    canvas = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.03)
    cells = list(canvas.subplots(rows, columns, squeeze=False).flat)
    shown: set[str] = set()
    for axes, panel in zip(cells, figure.panels):
        shown |= draw_panel(axes, panel, looks)
    for axes in cells[len(figure.panels) :]:
        axes.set_axis_off()
    handles = _handles(figure.panels, looks, shown)
    if handles:
        canvas.legend(
            handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, handlelength=3.4
        )
    if quick:
        canvas.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.17 / height))
        canvas.text(
            1 - 0.06 / width, 1 - 0.04 / height, "quick run", ha="right", va="top", color="0.45", size=8
        )
    # When it draws, matplotlib passes over an error of this in silence, and panels lie where they were.
    canvas.get_layout_engine().execute(canvas)
    return canvas


def _legend_shape(labels: Sequence[str], width: float) -> tuple[int, int]:
    """Columns and rows of a legend that fits the width in inches."""
    if not labels:
        return 1, 0
    entry = 0.75 + 0.075 * max(map(len, labels))
    rows = math.ceil(len(labels) / max(1, int(width / entry)))
    return math.ceil(len(labels) / rows), rows


def _handles(panels: Sequence[Panel], looks: Mapping[str, Style], shown: set[str]) -> list[Any]:
    """What the legend shows: each label once, and what open and filled markers mean."""
    from matplotlib.lines import Line2D

    lines = {label for panel in panels if not isinstance(panel, Points) for label in panel_labels(panel)}
    handles = []
    for label, look in looks.items():
        text = plain(label) if label in shown else f"{plain(label)} (no data)"
        dashes = look.dashes if label in lines else "none"
        handles.append(Line2D([], [], color=look.color, linestyle=dashes, marker=look.marker, label=text))
    groups = [label for panel in panels if isinstance(panel, Points) for label in panel.groups]
    for ending, filling in ((START, "white"), (END, "0.45")):
        if any(label.endswith(ending) for label in groups):
            marker = {"marker": "o", "markerfacecolor": filling, "markeredgecolor": "0.45"}
            handles.append(Line2D([], [], linestyle="none", label=ending.strip(), **marker))
    return handles
