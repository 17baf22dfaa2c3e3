"""What `sparsify_` did, layer by layer, as data and as an aligned table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """One weight-bearing layer: what it became, or why it was left as it is.

    Sparsities are fractions of zeros; bytes are those of one copy of the weight (gradients and optimizer
    states scale alike), the pattern's counted with it.
    """

    name: str
    shape: tuple[int, ...] | None
    reason: str | None = None
    aliases: tuple[str, ...] = ()
    tied_to: str | None = None
    sparsity_asked: float | None = None
    sparsity: float = 0.0
    nnz: int = 0
    numel: int = 0
    fan_in_min: int = 0
    fan_in_mean: float = 0.0
    value_bytes: int = 0
    pattern_bytes: int = 0
    dense_bytes: int = 0

    @property
    def converted(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class SparsifyReport:
    """The result of `sparsify_`; print it.

    Layers are in module order; layers that share a weight count once in the totals.
    """

    layers: tuple[LayerReport, ...]

    @property
    def converted(self) -> tuple[LayerReport, ...]:
        return tuple(layer for layer in self.layers if layer.converted)

    @property
    def left(self) -> tuple[LayerReport, ...]:
        return tuple(layer for layer in self.layers if not layer.converted)

    @property
    def _counted(self) -> tuple[LayerReport, ...]:
        return tuple(layer for layer in self.converted if layer.tied_to is None)

    @property
    def nnz(self) -> int:
        """Active weights of the converted layers."""
        return sum(layer.nnz for layer in self._counted)

    @property
    def numel(self) -> int:
        """Weights of the converted layers before, zeros included."""
        return sum(layer.numel for layer in self._counted)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over the converted layers; 0 when none was."""
        return 1 - self.nnz / self.numel if self.numel else 0.0

    def __str__(self) -> str:
        header = ("layer", "shape", "sparsity", "asked", "nnz", "fan-in min/mean", "bytes", "dense bytes")
        rows = [header, *(_cells(layer) for layer in self.layers)]
        # A reason runs to the end of its line, so it does not widen the columns.
        widths = [
            max(len(row[i]) for row in rows if i < 2 or len(row) == len(header)) for i in range(len(header))
        ]
        lines = [_line(row, widths) for row in rows]
        return "\n".join([*lines, "", self._totals()])

    def _totals(self) -> str:
        if not self.converted:
            return f"converted nothing: {len(self.left)} layers left as they were"
        stored = sum(layer.value_bytes + layer.pattern_bytes for layer in self._counted)
        dense = sum(layer.dense_bytes for layer in self._counted)
        return (
            f"converted {len(self.converted)} of {len(self.layers)} layers: sparsity {self.sparsity:.4f}, "
            f"{self.nnz:,} of {self.numel:,} weights, {stored:,} bytes with patterns, {dense:,} dense"
        )


def _cells(layer: LayerReport) -> tuple[str, ...]:
    name = layer.name + (f" (= {', '.join(layer.aliases)})" if layer.aliases else "")
    shape = "x".join(map(str, layer.shape)) if layer.shape else "-"
    if not layer.converted:
        return name, shape, f"left: {layer.reason}"
    if layer.tied_to is not None:
        return name, shape, f"shares the weight of {layer.tied_to}"
    return (
        name,
        shape,
        f"{layer.sparsity:.4f}",
        "mask" if layer.sparsity_asked is None else f"{layer.sparsity_asked:.4f}",
        f"{layer.nnz:,}",
        f"{layer.fan_in_min} / {layer.fan_in_mean:.1f}",
        f"{layer.value_bytes + layer.pattern_bytes:,}",
        f"{layer.dense_bytes:,}",
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
    if len(row) == 3:
        return "  ".join([*cells, row[2]])
    cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join(cells).rstrip()
