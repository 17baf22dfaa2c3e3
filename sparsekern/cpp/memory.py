"""How the extension is handed tensors: addresses, element counts and strides."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
FLOAT_TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}


def buffer(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.numel())


def contiguous(tensor: Tensor) -> Tensor:
    """`tensor` as its memory should read: a lazily negated one would read as its opposite."""
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def matrix(tensor: Tensor, columns: int) -> tuple[tuple[int, ...], Tensor]:
    """Address, reachable elements, rows and strides of `tensor` as a matrix, and the tensor behind them."""
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if tensor.dim() != 2:
        tensor = tensor.reshape(-1, columns)
    rows = tensor.shape[0]
    if tensor.is_contiguous():
        return (tensor.data_ptr(), tensor.numel(), rows, columns, 1), tensor
    reach = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    return (tensor.data_ptr(), reach, rows, *tensor.stride()), tensor


def floats(tensor: Tensor) -> tuple[int, int, int]:
    """Type, address and elements of a tensor of any floating-point type."""
    if tensor.dtype not in FLOAT_TYPES:
        raise TypeError(
            f"values and scores must be float16, bfloat16, float32 or float64, got {tensor.dtype}"
        )
    return FLOAT_TYPES[tensor.dtype], *buffer(tensor)
