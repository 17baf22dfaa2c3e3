"""The torch backend: PyTorch's own products of 2:4 weights, which run on sparse tensor cores.

PyTorch has two kinds of them, each with a layout of its own: "cutlass", whose kernels are for GPUs of compute
capability 8.x, and "cusparselt", NVIDIA's library. Values are the same as in the layout of rows, and so is
what metadata says, in another order.
"""

from __future__ import annotations

import math
import weakref
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "DTYPES",
    "FEWEST_SAMPLES",
    "LAYOUTS",
    "arrange",
    "choose_layout",
    "device_refusals",
    "semi_structured_linear",
    "size_refusals",
    "two_four_linear",
    "write_values",
]

LAYOUTS = ("cutlass", "cusparselt")
DTYPES = (torch.float16, torch.bfloat16, torch.int8)
# Below, a product waits for the weight's bytes, not for tensor cores, which would not pay for arranging it.
FEWEST_SAMPLES = 128
# Sparse tensor cores came with it.
LEAST_CAPABILITY = (8, 0)


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

# The fastest of cuSPARSELt's algorithms, as far as known, by device, dtype, sizes and bias.
_algorithms: dict[tuple[object, ...], int] = {}
# What `two_four_linear` has arranged, by metadata, for as long as that and the values are as they were.
_arranged: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
# Whether cuSPARSELt has the values of a weight of some size first, in their order.
_values_lead: dict[tuple[object, ...], bool] = {}


def device_refusals(layout: str, device: torch.device) -> list[str]:
    """Why a layout cannot be multiplied on a device, if so."""
    if device.type != "cuda":
        return [f"PyTorch's 2:4 products run on CUDA devices, and the inputs are on {device}"]
    capability = torch.cuda.get_device_capability(device)
    found = ".".join(map(str, capability))
    if capability < LEAST_CAPABILITY:
        return [f"it needs a GPU of compute capability 8.0 or newer, and {device} has {found}"]
    # PyTorch says so itself where one tries; see https://github.com/pytorch/pytorch/issues/132928.
    if layout == "cutlass" and capability[0] != 8:
        return [f"PyTorch's CUTLASS kernels are for compute capability 8.x, and {device} has {found}"]
    if layout == "cusparselt" and not torch.backends.cusparselt.is_available():
        return ["this PyTorch is built without cuSPARSELt"]
    return []


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


def choose_layout(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> tuple[str, list[str]]:
    """The layout for a weight ``(rows, columns)`` on a device, and what speaks against those before it.

    Returns
    -------
    tuple of str and list of str
        "cutlass" where its kernels run and the sizes fit, else "cusparselt", else "rows", which Triton's
        kernels take; and for each layout that is passed over its reasons, as ``"cutlass: ..."``.
    """
    reasons = []
    for layout in LAYOUTS:
        refusals = device_refusals(layout, device) + size_refusals(rows, columns, dtype, layout)
        if not refusals:
            return layout, reasons
        reasons += [f"{layout}: {refusal}" for refusal in refusals]
    return "rows", reasons


def two_four_linear(x: Tensor, values: Tensor, bias: Tensor | None, metadata: Tensor) -> Tensor:
    """The op, on a weight packed by rows, in whichever layout the device multiplies.

    Raises
    ------
    ValueError
        When no layout suits device, dtype and sizes, with all reasons.
    """
    rows, columns = values.shape[0], 2 * values.shape[1]
    layout, reasons = choose_layout(rows, columns, x.dtype, x.device)
    if layout == "rows":
        raise ValueError(f"x and the weight must suit PyTorch's 2:4 products: {'; '.join(reasons)}")
    arranged, words = _kept_arrangement(values, metadata, layout)
    return semi_structured_linear(x, arranged, bias, words, layout, rows)


def _kept_arrangement(values: Tensor, metadata: Tensor, layout: str) -> tuple[Tensor, Tensor | None]:
    found = _arranged.get(metadata)
    if found is not None:
        weak, version, arranged = found
        if weak() is values and version == values._version:
            return arranged
    arranged = arrange(values, metadata, layout)
    if not values.is_inference():
        _arranged[metadata] = weakref.ref(values), values._version, arranged
    return arranged


def semi_structured_linear(
    x: Tensor, values: Tensor, bias: Tensor | None, metadata: Tensor | None, layout: str, rows: int
) -> Tensor:
    """``F.linear(x, W, bias)`` on sparse tensor cores; of int8, the sums in int32.

    Parameters
    ----------
    x : Tensor
        ``(..., K)`` of any strides: float16, bfloat16 or int8, on a CUDA device. Samples are padded to a
        multiple of 8, or 16 for int8.
    values, metadata : Tensor
        As `arrange` returns them.
    bias : Tensor or None
        ``(N,)`` of x's dtype; None for int8.
    layout : str
        "cutlass" or "cusparselt".
    rows : int
        N.

    Returns
    -------
    Tensor
        ``(..., N)``, contiguous, of x's dtype; int32 for int8.

    Raises
    ------
    ValueError
        When N or K does not suit the layout, or there is a bias for int8; says which sizes are nearest.
    """
    columns = x.shape[-1]
    refusals = size_refusals(rows, columns, x.dtype, layout)
    if refusals:
        raise ValueError("; ".join(refusals))
    if x.dtype == torch.int8 and bias is not None:
        raise ValueError("bias: expected None for int8, whose sums are integers")
    matrix = x.resolve_neg().reshape(-1, columns).contiguous()
    samples = matrix.shape[0]
    if samples == 0:
        return x.new_empty((*x.shape[:-1], rows), dtype=torch.int32 if x.dtype == torch.int8 else x.dtype)
    if missing := -samples % MULTIPLES[layout, x.dtype].samples:
        matrix = F.pad(matrix, (0, 0, 0, missing))
    multiply = _cutlass_product if layout == "cutlass" else _cusparselt_product
    y = multiply(matrix, values, bias, metadata, rows)
    return y[:samples].contiguous().view(*x.shape[:-1], rows)


def arrange(values: Tensor, metadata: Tensor, layout: str) -> tuple[Tensor, Tensor | None]:
    """A weight packed by rows in a layout; a kept 0 stays where it is.

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
        For "cutlass" the values themselves, and metadata as int16 ``(N, K/16)``, or int32 ``(N, K/32)`` for
        int8. For "cusparselt" one tensor with all of it, and None; the first weight of a size is waited for.
    """
    rows, columns = values.shape[0], 2 * values.shape[1]
    refusals = size_refusals(rows, columns, values.dtype, layout)
    if refusals:
        raise ValueError("; ".join(refusals))
    if layout == "cutlass":
        return values, _interleaved(metadata, torch.int32 if values.dtype == torch.int8 else torch.int16)
    # cuSPARSELt tells kept weights by not being 0, so it is shown others at first. Where it puts metadata is
    # its own affair, and may differ by GPU; where it puts values can be seen.
    probe = _probe(values)
    packed = torch._cslt_compress(_unpacked(probe, metadata)).reshape(rows, -1)
    key = (values.device, values.dtype, rows, columns)
    if key not in _values_lead:
        _values_lead[key] = torch.equal(_leading(packed, values.numel()), probe.flatten())
    if not _values_lead[key]:
        return torch._cslt_compress(_unpacked(values, metadata)).reshape(rows, -1), None
    _leading(packed, values.numel()).copy_(values.flatten())
    return packed, None


def write_values(packed: Tensor, values: Tensor, metadata: Tensor) -> None:
    """Puts new values, at the places of the old ones, into what `arrange` made for "cusparselt".

    Parameters
    ----------
    packed : Tensor
        What `arrange` returned, which is written to.
    values, metadata : Tensor
        The weight packed by rows, with the same metadata as then.
    """
    if _values_lead.get((values.device, values.dtype, values.shape[0], 2 * values.shape[1]), False):
        _leading(packed, values.numel()).copy_(values.flatten())
    else:
        packed.copy_(arrange(values, metadata, "cusparselt")[0])


def _cutlass_product(
    x: Tensor, values: Tensor, bias: Tensor | None, metadata: Tensor | None, rows: int
) -> Tensor:
    """The samples of a contiguous matrix times the weight, ``(samples, rows)``."""
    out_dtype = torch.int32 if x.dtype == torch.int8 else None
    if bias is None:
        y_t = torch._sparse_semi_structured_mm(values, metadata, x.t(), out_dtype=out_dtype)
    else:
        y_t = torch._sparse_semi_structured_addmm(bias, values, metadata, x.t(), out_dtype=out_dtype)
    return y_t.t()


def _cusparselt_product(
    x: Tensor, packed: Tensor, bias: Tensor | None, metadata: Tensor | None, rows: int
) -> Tensor:
    arguments = packed.view(rows, -1), x.t(), bias
    options = {"out_dtype": torch.int32 if x.dtype == torch.int8 else None, "transpose_result": True}
    return torch._cslt_sparse_mm(*arguments, **options, alg_id=_algorithm(arguments, options, rows))


def _algorithm(arguments: tuple[Tensor, Tensor, Tensor | None], options: dict[str, object], rows: int) -> int:
    """The number of the fastest algorithm; searching for it runs them all, once for each problem.

    A problem is a dtype and the sizes, samples up to the next power of two. Nothing is searched for while a
    CUDA graph is captured, or a model compiled.
    """
    packed, x_t, bias = arguments
    columns, samples = x_t.shape
    power = 1 << (samples - 1).bit_length()
    key = (packed.device, packed.dtype, rows, columns, power, bias is not None)
    if key not in _algorithms:
        if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
            return 0
        _algorithms[key] = torch._cslt_sparse_mm_search(*arguments, **options)
    return _algorithms[key]


def _interleaved(metadata: Tensor, words: torch.dtype) -> Tensor:
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


def _unpacked(values: Tensor, metadata: Tensor) -> Tensor:
    """The dense weight, made of PyTorch's ops."""
    rows, kept = values.shape
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=values.device)
    columns = (metadata.unsqueeze(-1) >> shifts & 3).view(rows, -1)[:, :kept].long()
    columns += torch.arange(0, kept, device=values.device) // 2 * 4
    return values.new_zeros(rows, 2 * kept).scatter_(1, columns, values)


def _probe(values: Tensor) -> Tensor:
    """Values of the same shape, none of them 0, that tell their places apart."""
    places = torch.arange(values.numel(), device=values.device)
    return (places % 113 + 1).to(values.dtype).view(values.shape)


def _leading(packed: Tensor, count: int) -> Tensor:
    return packed.view(-1)[:count]


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
