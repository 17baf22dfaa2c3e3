"""What the host knows of packed patterns without asking the device that holds them.

Ops carry a pattern as its packed tensor alone. On a GPU, reading the header would wait for the device and
break the capture of a CUDA graph; whoever makes a pattern knows its layout, and states it here.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sparsekern.formats.layout import HEADER_WORDS, Layout
from sparsekern.formats.tile_index import TileIndex

__all__ = ["index_of", "layout_of", "remember"]

_layouts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_indices: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remember(data: Tensor, layout: Layout, host_data: Tensor | None = None) -> None:
    """State the layout of `data`, a valid pattern that never changes, for as long as the tensor lives.

    Parameters
    ----------
    data : Tensor
        The packed pattern, on any device.
    layout : Layout
        What its header says.
    host_data : Tensor, optional
        The same words on the CPU, if they are there.
    """
    # What is kept about a tensor must not keep the tensor itself.
    _layouts[data] = layout, None if host_data is data else host_data


def layout_of(data: Tensor) -> Layout:
    """The layout of a packed pattern; its header is read, and its device waited for, if nobody stated it."""
    found = _layouts.get(data)
    return Layout.from_header(data[:HEADER_WORDS].tolist()) if found is None else found[0]


def index_of(data: Tensor) -> TileIndex:
    """The sections of a packed pattern, and what the choice of a kernel depends on.

    Kept for patterns that somebody stated; a tensor that nobody vouches for might be written to between two
    calls, so it is read again each time.
    """
    index = _indices.get(data)
    if index is not None:
        return index
    if data not in _layouts:
        host_data = data.cpu()
        return TileIndex.build(data, Layout.from_header(host_data[:HEADER_WORDS].tolist()), host_data)
    index = TileIndex.build(data, *_layouts[data])
    _indices[data] = index
    return index
