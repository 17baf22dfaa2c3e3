"""What the host knows of packed patterns without asking the device that holds them.

Ops carry a pattern as its packed tensor alone. On a GPU, reading the header would wait for the device and
break the capture of a CUDA graph; whoever makes a pattern knows its layout, and states it here.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sparsekern.formats.layout import HEADER_WORDS, Layout

__all__ = ["layout_of", "remember"]

_layouts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remember(data: Tensor, layout: Layout) -> None:
    """State the layout of `data`, a valid pattern that never changes, for as long as the tensor lives."""
    _layouts[data] = layout


def layout_of(data: Tensor) -> Layout:
    """The layout of a packed pattern; its header is read, and its device waited for, if nobody stated it."""
    found = _layouts.get(data)
    return Layout.from_header(data[:HEADER_WORDS].tolist()) if found is None else found
