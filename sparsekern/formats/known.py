"""What is known about packed patterns on the host, so that nothing has to wait for a device to ask it."""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sparsekern.formats.layout import HEADER_WORDS, Layout

__all__ = ["layout_of", "remember"]

_layouts = WeakTensorKeyDictionary()


def remember(data: Tensor, layout: Layout) -> None:
    """Keep the layout of a packed pattern for as long as the tensor lives."""
    _layouts[data] = layout


def layout_of(data: Tensor) -> Layout:
    """The layout of a packed pattern: what was remembered, or read from its header, which waits."""
    layout = _layouts.get(data)
    if layout is None:
        layout = Layout.from_header(data[:HEADER_WORDS].tolist())
        remember(data, layout)
    return layout
