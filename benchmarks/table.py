"""A table that is printed aligned and written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


class Table:
    """Rows of text under a header; the first `left` columns are left-aligned, the others right-aligned."""

    def __init__(self, title: str, header: Sequence[str], left: int = 1) -> None:
        self.title = title
        self.header = list(header)
        self.left = left
        self.rows: list[list[str]] = []
        self.notes: list[str] = []

    def add(self, *cells: str) -> None:
        self.rows.append(list(cells))

    def note(self, text: str) -> None:
        """A line below the table, once."""
        if text not in self.notes:
            self.notes.append(text)

    def text(self) -> str:
        table = [self.header, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.header))]
        lines = [self._line(row, widths, "  ").rstrip() for row in table]
        rule = "-" * max(map(len, lines))
        return "\n".join([self.title, rule, lines[0], rule, *lines[1:], rule, *self.notes]) + "\n"

    def markdown(self) -> str:
        table = [self.header, *self.rows]
        widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(self.header))]
        lines = [f"| {self._line(row, widths, ' | ')} |" for row in table]
        rule = ["-" * w if i < self.left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        lines.insert(1, f"| {' | '.join(rule)} |")
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"**{self.title}**\n", *lines, *notes]) + "\n"

    def _line(self, row: Sequence[str], widths: Sequence[int], separator: str) -> str:
        cells = [c.ljust(w) if i < self.left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        return separator.join(cells)
