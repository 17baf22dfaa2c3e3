"""The geometry of a 2-D convolution, as the ops carry it, and the size of its output.

A schema holds no structures, so a geometry is seven integers: stride, padding and dilation, each vertical and
horizontal, then groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsekern.formats.checks import is_integer

__all__ = ["Sizes", "conv2d_geometry", "conv2d_output_size"]

# As a schema carries them; symbolic in a compiled graph.
Sizes = Sequence[int]


def conv2d_geometry(
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> tuple[int, ...]:
    """The seven integers of a geometry.

    Raises
    ------
    ValueError
        When one is out of its range; whether `groups` divides the channels, only the weight can tell.
    """
    if not _is_integer(groups, 1):
        raise ValueError(f"groups must be an integer of at least 1, got {groups!r}")
    pairs = (*_pair("stride", stride, 1), *_pair("padding", padding, 0), *_pair("dilation", dilation, 1))
    return (*pairs, int(groups))


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not (_is_integer(pair[0], least) and _is_integer(pair[1], least)):
        raise ValueError(f"{name} must be an integer of at least {least}, or two of them, got {value!r}")
    return int(pair[0]), int(pair[1])


def _is_integer(value: Any, least: int) -> bool:
    return is_integer(value) and value >= least


def conv2d_output_size(size: Sizes, shape: Sizes, geometry: Sizes) -> tuple[int, int, int, int]:
    """Output shape of an input of `size` (batch, channels, height, width) and a weight of `shape`."""
    batch, _, height, width = size
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _ = geometry
    out_h = (height + 2 * pad_h - dilation_h * (shape[2] - 1) - 1) // stride_h + 1
    out_w = (width + 2 * pad_w - dilation_w * (shape[3] - 1) - 1) // stride_w + 1
    return batch, shape[0], out_h, out_w
