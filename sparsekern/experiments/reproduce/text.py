"""What a report's formats share: which columns are numbers, marks of verdicts, captions, code in prose."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sparsekern.experiments.reproduce.document import Figure, Table

QUICK_NOTICE = "This is a quick run: training was cut short, so its numbers say nothing about the paper's."
MARKS = {"agrees": "✓", "differs": "✗"}

_NUMBER = r"[<>≤≥≈~]? ?[-−+]?\d[\d.,]*(?:e[-+]?\d+)?(?: ?[%×])?(?: [A-Za-zµ]{1,4})?"
_NUMBERS = re.compile(rf"{_NUMBER}(?: ?(?:±|to|–|/) ?{_NUMBER})*(?: \([^()]*\))?")
_NOTHING = {"", "-", "−", "–", "—", "?", "n/a", "nan", "none"}


def code_spans(text: str) -> Iterator[tuple[bool, str]]:
    """The pieces of a text and whether they were between backticks; a backtick without a second is itself."""
    pieces = re.split(r"`([^`]+)`", text)
    for index, piece in enumerate(pieces):
        if piece:
            yield index % 2 == 1, piece


def number_columns(table: Table) -> list[bool]:
    """Whether each column is mostly numbers; the first, which names the rows, is not."""
    return [index > 0 and _mostly_numbers(cells) for index, cells in enumerate(_columns(table))]


def _columns(table: Table) -> list[list[str]]:
    return [[row[index] for row in table.rows] for index in range(len(table.headers))]


def _mostly_numbers(cells: list[str]) -> bool:
    said = [cell.strip() for cell in cells if cell.strip().lower() not in _NOTHING]
    numbers = sum(_NUMBERS.fullmatch(cell) is not None for cell in said)
    return 2 * numbers > len(said)


def verdict(cell: str) -> str | None:
    """``"agrees"`` or ``"differs"`` if the cell begins with that word."""
    found = re.match(r"(agrees|differs)\b", cell)
    return found[1] if found else None


def caption(figure: Figure, quick: bool) -> str:
    """A figure's caption, which says so if runs were cut short."""
    return f"Quick run. {figure.caption}".strip() if quick else figure.caption


def alternative(figure: Figure) -> str:
    """What stands for a picture where it cannot be seen."""
    return "; ".join(panel.title for panel in figure.panels if panel.title) or figure.name
