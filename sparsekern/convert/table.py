"""What was converted, as aligned text."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekern.convert.convert import Row


def table(rows: Sequence[Row], others: int, other_bytes: int) -> str:
    """A line for each layer, one for all other tensors, and the sums.

    Parameters
    ----------
    rows : sequence of Row
    others, other_bytes : int
        How many tensors are no layer's weight, and their bytes, before and after.
    """
    lines = [("layer", "shape", "zeros", "from", "to", "bytes in", "bytes out", "")]
    lines += [
        (
            row.name or "(the layer)",
            "x".join(map(str, row.shape)),
            f"{row.sparsity:.2%}",
            row.before,
            row.after,
            f"{row.bytes_before:,}",
            f"{row.bytes_after:,}",
            f"  {row.reason}" if row.reason else "",
        )
        for row in rows
    ]
    lines.append((f"{others} other tensors", "", "", "", "", f"{other_bytes:,}", f"{other_bytes:,}", ""))
    before, after = (
        other_bytes + sum(getattr(row, name) for row in rows) for name in ("bytes_before", "bytes_after")
    )
    ratio = f"  {before / after:.1f}x smaller" if after < before else ""
    lines.append(("total", "", "", "", "", f"{before:,}", f"{after:,}", ratio))
    widths = [max(len(line[i]) for line in lines) for i in range(7)]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: tuple[str, ...], widths: Sequence[int]) -> str:
    left = {0, 1, 3, 4}
    parts = [
        cell.ljust(width) if i in left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells[:7], widths, strict=True))
    ]
    return ("  ".join(parts) + cells[7]).rstrip()
