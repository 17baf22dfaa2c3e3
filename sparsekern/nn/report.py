"""What `sparsify_` did, layer by layer, as data and as an aligned table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """One weight-bearing layer: what it became, or why it was left as it is.

    Attributes
    ----------
    name : str
        As ``named_modules`` has it; the first one of a module used in several places.
    shape : tuple of int or None
        Of the dense weight; None when it is not known yet (a lazy module).
    reason : str or None
        Why the layer was left as it is; None when it was converted. What follows is set for converted ones.
    aliases : tuple of str
        The other names of the module; set for layers left as well.
    tied_to : str or None
        Name of the layer before it that holds the same weight; the totals count that one only.
    sparsity_asked : float or None
        Fraction of zeros by the distribution's formula, before weights are rounded to whole ones and blocks
        to whole blocks; None when a mask was given.
    sparsity : float
        Fraction of zeros of the pattern.
    nnz, numel : int
        Active weights, and weights of the dense layer.
    fan_in_min, fan_in_mean : int, float
        Active inputs of an output neuron: the smallest, and the mean.
    empty_outputs : int
        Outputs without an active weight, which no input reaches.
    depthwise : bool
        Whether it is a convolution each of whose outputs reads one of several channels.
    value_bytes, pattern_bytes, dense_bytes : int
        Bytes of the stored weight, of its pattern, and of the dense weight. Gradients and optimizer states
        are as large as the stored weight; there is one pattern for all of them.
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
    empty_outputs: int = 0
    depthwise: bool = False
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
        return "\n".join([*lines, "", self._totals(), *self._notes()])

    def _totals(self) -> str:
        if not self.converted:
            return f"converted nothing: {len(self.left)} layers left as they were"
        stored = sum(layer.value_bytes + layer.pattern_bytes for layer in self._counted)
        dense = sum(layer.dense_bytes for layer in self._counted)
        return (
            f"converted {len(self.converted)} of {len(self.layers)} layers: sparsity {self.sparsity:.4f}, "
            f"{self.nnz:,} of {self.numel:,} weights, {stored:,} bytes with patterns, {dense:,} dense"
        )

    def _notes(self) -> list[str]:
        """What the table shows only to those who look for it."""
        empty = [layer for layer in self._counted if layer.empty_outputs]
        if not empty:
            return []
        outputs = sum(layer.empty_outputs for layer in empty)
        worst = max(empty, key=lambda layer: layer.empty_outputs / layer.shape[0])
        notes = [
            f"outputs without an active weight: {outputs:,} in {len(empty)} of these layers; most in "
            f"{worst.name}, {worst.empty_outputs:,} of {worst.shape[0]:,}"
        ]
        if depthwise := sum(layer.depthwise for layer in empty):
            notes.append(
                f"{depthwise} of the {len(empty)} are depthwise, with few weights an output; to "
                "leave them dense: filter_fn=lambda module, name: not sparsekern.nn.is_depthwise(module)"
            )
        return notes


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
