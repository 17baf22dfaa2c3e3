"""A report as Markdown, as GitHub and others show it."""

from __future__ import annotations

import re
from urllib.parse import quote

from sparsekern.experiments.reproduce.document import Figure, Report, Section, Table
from sparsekern.experiments.reproduce.text import (
    MARKS,
    QUICK_NOTICE,
    alternative,
    caption,
    code_spans,
    number_columns,
    verdict,
)


def markdown(report: Report, figures: str = "figures") -> str:
    """The report as text, a paragraph in a line, tables aligned.

    Parameters
    ----------
    report : Report
    figures : str
        The folder of ``NAME.svg``, relative to the text's own.
    """
    blocks = [f"# {escape(report.title)}"]
    if report.quick:
        blocks.append(f"**{QUICK_NOTICE}**")
    blocks += map(_paragraph, report.summary)
    for section in report.sections:
        blocks += _section(section, figures, report.quick)
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Text in one line that Markdown shows as it is; `code` stays code."""
    pieces = []
    for is_code, piece in code_spans(" ".join(text.split())):
        if is_code:
            pieces.append(f"`{piece}`")
        else:
            piece = re.sub(r"[\\*<\[\]~$`]", r"\\\g<0>", piece)
            # Within a word an underscore means nothing, and is easier to read alone.
            piece = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", piece)
            pieces.append(re.sub(r"&(?=#?\w+;)", "&amp;", piece))
    return "".join(pieces)


def _paragraph(text: str) -> str:
    # At the start of a line, these would make a heading, a quotation or a list.
    return re.sub(r"^(\d+)([.)])(?=\s)|^([#>+=|-])", r"\1\\\2\3", escape(text))


def _section(section: Section, figures: str, quick: bool) -> list[str]:
    blocks = [f"## {escape(section.title)}", *map(_paragraph, section.text)]
    for table in section.tables:
        blocks.append(_table(table))
        if table.notes:
            blocks.append(_paragraph(" ".join(table.notes)))
    for figure in section.figures:
        blocks += _figure(figure, figures, quick)
    return blocks


def _table(table: Table) -> str:
    right = number_columns(table)
    lines = [[_cell(cell) for cell in line] for line in (table.headers, *table.rows)]
    widths = [max(3, *map(len, cells)) for cells in zip(*lines)]
    rule = ["-" * (width - 1) + ":" if is_right else "-" * width for width, is_right in zip(widths, right)]
    return "\n".join(
        "| " + " | ".join(_aligned(line, widths, right)) + " |" for line in (lines[0], rule, *lines[1:])
    )


def _aligned(cells: list[str], widths: list[int], right: list[bool]) -> list[str]:
    return [
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip(cells, widths, right)
    ]


def _cell(text: str) -> str:
    said = verdict(text)
    marked = f"{MARKS[said]} {text}" if said else text
    # A bar ends a cell even within code.
    return escape(marked).replace("|", r"\|")


def _figure(figure: Figure, figures: str, quick: bool) -> list[str]:
    image = f"![{escape(alternative(figure))}]({quote(f'{figures}/{figure.name}.svg')})"
    text = caption(figure, quick)
    return [image, _paragraph(text)] if text else [image]
