"""The layouts of 2:4 weights that PyTorch's own products read, made of the layout of rows.

In all of them values are the same, ``(N, K/2)``, and metadata says the same in another order:

cutlass
    Values, and metadata as int16 ``(N, K/16)``, or int32 ``(N, K/32)`` for int8.
cusparselt
    One tensor ``(N, K/2 + bytes of metadata)``, values and then metadata. Where metadata goes is known for
    elements of two bytes, from ``MetadataCuSparseLt`` in PyTorch's SparseSemiStructuredTile.cu, of which
    NVIDIA says nothing and which may differ by GPU. So what the library makes of a weight is compared first,
    once for each size; where it is something else, the library arranges every weight itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DTYPES", "LAYOUTS", "MULTIPLES", "arrange", "arrange_new_values", "is_recorded", "size_refusals"]

LAYOUTS = ("cutlass", "cusparselt")
DTYPES = (torch.float16, torch.bfloat16, torch.int8)


class Multiples(NamedTuple):
    """What the sizes of a product have to be multiples of: outputs, inputs, and samples, which are padded."""

    rows: int
    columns: int
    samples: int


# As torch/sparse/semi_structured.py has them.
MULTIPLES = {
    ("cutlass", torch.float16): Multiples(32, 64, 8),
    ("cutlass", torch.bfloat16): Multiples(32, 64, 8),
    ("cutlass", torch.int8): Multiples(16, 128, 16),
    ("cusparselt", torch.float16): Multiples(16, 16, 8),
    ("cusparselt", torch.bfloat16): Multiples(16, 16, 8),
    ("cusparselt", torch.int8): Multiples(32, 32, 16),
}

# How a weight of some device, dtype and size is arranged for cuSPARSELt: with values and metadata where they
# are known to go, with values alone where they are, or by the library.
KNOWN, VALUES_KNOWN, UNKNOWN = "known", "values known", "unknown"
_knowledge: dict[tuple[object, ...], str] = {}


def size_refusals(rows: int, columns: int, dtype: torch.dtype, layout: str) -> list[str]:
    """Why the hardware cannot multiply a weight ``(rows, columns)`` in a layout, if so."""
    if dtype not in DTYPES:
        return [_dtype_refusal(dtype)]
    multiples = MULTIPLES[layout, dtype]
    where = f"for {_name(dtype)} in layout {layout}"
    sizes = {"out_features": (rows, multiples.rows), "in_features": (columns, multiples.columns)}
    return [
        f"{name} must be a multiple of {multiple} {where}, got {size}; {_nearest(size, multiple)}"
        for name, (size, multiple) in sizes.items()
        if size == 0 or size % multiple
    ]


def arrange(values: Tensor, metadata: Tensor, layout: str) -> tuple[Tensor, Tensor | None]:
    """A weight packed by rows in a layout; a kept 0 stays where it is, unless the library arranges it alone.

    Parameters
    ----------
    values : Tensor
        ``(N, K/2)``, float16, bfloat16 or int8; for "cusparselt" on a CUDA device.
    metadata : Tensor
        uint8 ``(N, K/8)``.
    layout : str
        "cutlass" or "cusparselt".

    Returns
    -------
    tuple of Tensor
        For "cutlass" the values themselves, and metadata; for "cusparselt" one tensor, and None. The first
        weight of a size is waited for there.

    Raises
    ------
    ValueError
        When N or K does not suit the layout; says which sizes are nearest.
    """
    if refusals := size_refusals(values.shape[0], 2 * values.shape[1], values.dtype, layout):
        raise ValueError("; ".join(refusals))
    if layout == "cutlass":
        return values, interleaved(metadata, torch.int32 if values.dtype == torch.int8 else torch.int16)
    knowledge = _knowledge_of(values, metadata)
    if knowledge == KNOWN:
        return _joined(values, blocked(metadata).view(values.dtype)), None
    if knowledge == UNKNOWN:
        return _compressed(values, metadata), None
    # The library tells kept weights by not being 0, so it is shown others.
    return _with_values(_compressed(torch.ones_like(values), metadata), values), None


def arrange_new_values(arranged: Tensor, values: Tensor, metadata: Tensor) -> Tensor:
    """What `arrange` would make for "cusparselt" of new values, from what it made of others.

    Parameters
    ----------
    arranged : Tensor
        What it made, which stays as it is.
    values, metadata : Tensor
        The weight packed by rows, with the same metadata as then.
    """
    if _knowledge.get(_key(values)) in (KNOWN, VALUES_KNOWN):
        return _with_values(arranged, values)
    return arrange(values, metadata, "cusparselt")[0]


def interleaved(metadata: Tensor, words: torch.dtype) -> Tensor:
    """Metadata in the order of ``_calculate_meta_reordering_scatter_offsets`` of PyTorch.

    A block of 32 rows (16 of int32) and two words is contiguous, and blocks below each other follow one
    another. In it come, for each row of the first eight, its words and those of the rows 8, 16 and 24 below.
    """
    rows = metadata.shape[0]
    metadata = metadata.contiguous().view(words)
    pairs = 2 if words == torch.int16 else 1
    # Blocks down, pairs of eights of rows, eights of a pair, rows of an eight; blocks across, words.
    parts = metadata.view(rows // (16 * pairs), pairs, 2, 8, -1, 2)
    return parts.permute(4, 0, 3, 1, 5, 2).reshape(rows, -1)


def blocked(metadata: Tensor) -> Tensor:
    """Metadata of elements of two bytes as cuSPARSELt has it, if it does; N and K are multiples of 128.

    The blocks are those of `interleaved`, and 4 x 2 of them, below each other first, are contiguous.
    """
    rows = metadata.shape[0]
    metadata = metadata.contiguous().view(torch.int16)
    # Down: large blocks, blocks, pairs of eights of rows, eights, rows. Across: large blocks, blocks, words.
    parts = metadata.view(rows // 128, 4, 2, 2, 8, -1, 2, 2)
    return parts.permute(5, 0, 6, 1, 4, 2, 7, 3).reshape(rows, -1)


def is_recorded(tensor: Tensor) -> bool:
    """Whether what is done with a tensor now is recorded as a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _knowledge_of(values: Tensor, metadata: Tensor) -> str:
    key = _key(values)
    if key not in _knowledge:
        if is_recorded(values):
            # Nothing can be compared in a recording.
            return UNKNOWN
        _knowledge[key] = _compare(values, metadata)
    return _knowledge[key]


def _key(values: Tensor) -> tuple[object, ...]:
    return values.device, values.dtype, *values.shape


def _compare(values: Tensor, metadata: Tensor) -> str:
    """Shows the library values that tell their places apart, none of them 0."""
    rows, count = values.shape[0], values.numel()
    places = torch.arange(count, device=values.device)
    probe = (places % 113 + 1).to(values.dtype).view(values.shape)
    arranged = _compressed(probe, metadata)
    if not torch.equal(arranged.view(-1)[:count], probe.flatten()):
        return UNKNOWN
    is_known = values.element_size() == 2 and rows % 128 == 0 and 2 * values.shape[1] % 128 == 0
    if is_known and torch.equal(arranged, _joined(probe, blocked(metadata).view(values.dtype))):
        return KNOWN
    return VALUES_KNOWN


def _compressed(values: Tensor, metadata: Tensor) -> Tensor:
    return torch._cslt_compress(_unpacked(values, metadata)).reshape(values.shape[0], -1)


def _joined(values: Tensor, metadata: Tensor) -> Tensor:
    return torch.cat([values.flatten(), metadata.flatten()]).view(values.shape[0], -1)


def _with_values(arranged: Tensor, values: Tensor) -> Tensor:
    return _joined(values, arranged.view(-1)[values.numel() :])


def _unpacked(values: Tensor, metadata: Tensor) -> Tensor:
    from sparsekern import triton

    if values.is_cuda and triton.unusable() is None:
        return triton.unpack_two_four(values, metadata)
    rows, kept = values.shape
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=values.device)
    columns = (metadata.unsqueeze(-1) >> shifts & 3).view(rows, -1)[:, :kept].long()
    columns += torch.arange(0, kept, device=values.device) // 2 * 4
    return values.new_zeros(rows, 2 * kept).scatter_(1, columns, values)


def _nearest(size: int, multiple: int) -> str:
    below, above = size // multiple * multiple, math.ceil(size / multiple) * multiple
    if below == 0:
        return f"the nearest is {max(above, multiple)}"
    return f"the nearest are {below} and {above}"


def _dtype_refusal(dtype: torch.dtype) -> str:
    reason = ", whose sparsity on tensor cores is 1:2" if dtype == torch.float32 else ""
    return f"it multiplies float16, bfloat16 and int8, and the inputs are {_name(dtype)}{reason}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
