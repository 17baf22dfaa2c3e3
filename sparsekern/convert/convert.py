"""A state dict into another format, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from sparsekern.convert.errors import ConvertError
from sparsekern.convert.layers import FORMS, Layer, nbytes
from sparsekern.convert.targets import TARGETS, Converted, Options
from sparsekern.convert.write import header_of


@dataclass(frozen=True)
class Row:
    """What became of a layer; one of the table.

    Attributes
    ----------
    name, shape, sparsity
        Of the layer; the fraction of positions that are not stored.
    before, after : str
        Forms.
    bytes_before, bytes_after : int
        Of its tensors; 0 for a layer that is tied to one before it.
    reason : str or None
        Why it is dense now.
    pruned : int
        Weights set to 0.
    zeros : int
        Stored weights that are 0, whose positions the new form does not keep.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    before: str
    after: str
    bytes_before: int
    bytes_after: int
    reason: str | None
    pruned: int
    zeros: int


@dataclass(frozen=True)
class Result:
    """The new state dict.

    Attributes
    ----------
    state : dict of str to Tensor
        Tied layers have the same tensors.
    layers : dict
        What the header of a safetensors file says of sparse layers.
    rows : tuple of Row
    others, other_bytes : int
        How many tensors are no layer's weight, and their bytes.
    """

    state: dict[str, Tensor]
    layers: dict[str, dict[str, Any]]
    rows: tuple[Row, ...]
    others: int
    other_bytes: int


def convert(
    state: Mapping[str, Tensor], layers: Mapping[str, Layer], options: Options, exclude: Sequence[str] = ()
) -> Result:
    """Every layer in the form of ``options.to``, where it can have it; other tensors as they are.

    Parameters
    ----------
    state : mapping of str to Tensor
    layers : mapping of str to Layer
        Of the state dict.
    options : Options
    exclude : sequence of str
        Names or glob patterns of layers that become dense.

    Raises
    ------
    ConvertError
        For a pattern that matches nothing, a layer that is refused, and when no layer could be converted.
    """
    excluded = _excluded(list(layers), exclude)
    new: dict[str, Tensor] = {}
    header: dict[str, dict[str, Any]] = {}
    rows: list[Row] = []
    others: dict[int, Tensor] = {}
    done: dict[int, Converted] = {}
    prefixes = {layer.prefix: layer for layer in layers.values()}
    for key, tensor in state.items():
        prefix, dot, own = key.rpartition(".")
        layer = prefixes.get(prefix + dot)
        if layer is None or own not in layer.tensors:
            new[key] = others.setdefault(id(tensor), tensor)
            continue
        if own != FORMS[layer.form][0]:
            continue
        tied = id(tensor) in done
        if not tied:
            done[id(tensor)] = _converted(layer, options, layer.name in excluded)
        converted = done[id(tensor)]
        new |= {layer.prefix + name: part for name, part in converted.tensors.items()}
        if (described := header_of(converted.form, layer.shape)) is not None:
            header[layer.name] = described
        rows.append(_row(layer, converted, tied))
    _check_any(rows, options)
    return Result(new, header, tuple(rows), len(others), sum(map(nbytes, others.values())))


def _excluded(names: list[str], patterns: Sequence[str]) -> set[str]:
    found = set()
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")}
        if not matching:
            raise ConvertError(
                f"--exclude must match a layer, got {pattern!r}; the layers are {', '.join(names) or 'none'}"
            )
        found |= matching
    return found


def _converted(layer: Layer, options: Options, excluded: bool) -> Converted:
    if excluded:
        return Converted({"weight": layer.dense}, "dense", "excluded")
    return TARGETS[options.to](layer, options)


def _row(layer: Layer, converted: Converted, tied: bool) -> Row:
    keeps = converted.form not in ("dense", "2:4") or converted.form == layer.form
    zeros = 0 if keeps or layer.form == "dense" else int((layer.dense[layer.mask] == 0).sum())
    sparsity = 0.5 if converted.form == "2:4" else layer.sparsity
    return Row(
        layer.name,
        layer.shape,
        sparsity,
        layer.form,
        converted.form,
        0 if tied else layer.nbytes,
        0 if tied else sum(map(nbytes, converted.tensors.values())),
        "shares the weight of a layer above" if tied else converted.reason,
        0 if tied else converted.pruned,
        0 if tied else zeros,
    )


def _check_any(rows: Sequence[Row], options: Options) -> None:
    """Raise when the new file would have nothing of the format that was asked for."""
    if options.to == "dense" or any(row.after != "dense" for row in rows):
        return
    reasons = "; ".join(f"{row.name or 'the layer'}: {row.reason}" for row in rows[:5])
    more = f"; and {len(rows) - 5} more" if len(rows) > 5 else ""
    raise ConvertError(
        f"--to {options.to} must have a layer to convert, found "
        + (f"none of {len(rows)} ({reasons}{more})" if rows else "no weight of two or four dimensions")
    )
