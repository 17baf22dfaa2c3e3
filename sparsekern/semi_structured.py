"""The torch backend: PyTorch's own products of 2:4 weights, which run on sparse tensor cores.

PyTorch has two kinds of them, each with a layout of its own: "cutlass", whose kernels are for GPUs of compute
capability 8.x, and "cusparselt", NVIDIA's library; see `sparsekern.two_four_layouts`.
"""

from __future__ import annotations

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sparsekern.two_four_layouts import (
    DTYPES,
    LAYOUTS,
    MULTIPLES,
    arrange,
    arrange_new_values,
    is_recorded,
    size_refusals,
)

__all__ = [
    "DTYPES",
    "FEWEST_SAMPLES",
    "LAYOUTS",
    "choose_layout",
    "device_refusals",
    "semi_structured_linear",
    "size_refusals",
    "two_four_linear",
]

# Below, a product waits for the weight's bytes, not for tensor cores, which would not pay for arranging it.
FEWEST_SAMPLES = 128
# Sparse tensor cores came with it.
LEAST_CAPABILITY = (8, 0)


# The fastest of cuSPARSELt's algorithms, as far as known, by device, dtype, sizes and bias.
_algorithms: dict[tuple[object, ...], int] = {}
# What `two_four_linear` has arranged, by metadata, for as long as that and the values are as they were.
_arranged: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


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
    """As `arrange`; where only values may be other than last time, metadata is not arranged again.

    Values that are trained may always be others: fused optimizers and replays of CUDA graphs write to them
    without being counted.
    """
    if metadata.is_inference() or values.is_inference() or is_recorded(values):
        # Nobody can tell whether these are what they were, or what they will be in a replay.
        return arrange(values, metadata, layout)
    now = metadata._version, layout, values.dtype
    weak, version, then, kept = _arranged.get(metadata, (None, None, None, None))
    if then != now:
        arranged, words = arrange(values, metadata, layout)
        kept = arranged if words is None else words
    elif layout == "cusparselt" and (
        values.requires_grad or weak() is not values or version != values._version
    ):
        kept = arrange_new_values(kept, values, metadata)
    _arranged[metadata] = weakref.ref(values), values._version, now, kept
    return (values, kept) if layout == "cutlass" else (kept, None)


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
        As `sparsekern.two_four_layouts.arrange` returns them.
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
        if torch.compiler.is_compiling() or is_recorded(packed):
            return 0
        _algorithms[key] = torch._cslt_sparse_mm_search(*arguments, **options)
    return _algorithms[key]
