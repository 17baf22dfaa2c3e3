"""A report's files: pictures, Markdown, HTML and the numbers themselves."""

from __future__ import annotations

import json
from pathlib import Path

from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.reproduce.document import Report
from sparsekern.experiments.reproduce.html import html
from sparsekern.experiments.reproduce.markdown import markdown
from sparsekern.experiments.reproduce.plots import require_matplotlib, write_figure
from sparsekern.experiments.reproduce.serialize import as_data, from_data
from sparsekern.files import write_atomically

FIGURES = "figures"


def write_report(report: Report, folder: Path) -> dict[str, Path]:
    """Write a report in all formats, each file as a whole or not at all.

    ``results.json`` comes first and has the numbers; everything else is made from what it says, so a report
    that is read back from it writes the same files.

    Parameters
    ----------
    report : Report
    folder : Path
        Made if it is not there.

    Returns
    -------
    dict of str to Path
        By the path relative to ``folder``: ``"results.json"``, ``"figures/NAME.svg"`` and ``.png``,
        ``"report.md"``, ``"report.html"``.

    Raises
    ------
    ExperimentError
        If matplotlib is not installed; nothing is written then.
    OSError
        If a file cannot be written.
    """
    require_matplotlib()
    figures = folder / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    earlier = _figures_of(folder / "results.json")
    data = as_data(report)
    report = from_data(data)
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    written = [_write(folder / "results.json", text)]
    svgs = {}
    for figure in report.figures:
        paths = write_figure(figure, figures, report.quick)
        svgs[figure.name] = paths[0].read_text(encoding="utf-8")
        written += paths
    written.append(_write(folder / "report.md", markdown(report, FIGURES)))
    written.append(_write(folder / "report.html", html(report, svgs)))
    for name in earlier - svgs.keys():
        # Of a report that is no more: beside this one they would seem to belong to it.
        for suffix in (".svg", ".png"):
            (figures / f"{name}{suffix}").unlink(missing_ok=True)
    return {path.relative_to(folder).as_posix(): path for path in written}


def read_report(path: Path) -> Report:
    """Read the report that a ``results.json`` holds.

    Raises
    ------
    ExperimentError
        If the file cannot be read or is something else.
    """
    try:
        return from_data(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ExperimentError(f"{path}: expected the results.json of a report") from None


def _figures_of(path: Path) -> set[str]:
    """The pictures of the report that is there; none if it cannot be read."""
    try:
        return {figure.name for figure in read_report(path).figures}
    except ExperimentError:
        return set()


def _write(path: Path, text: str) -> Path:
    write_atomically(path, text.encode())
    return path
