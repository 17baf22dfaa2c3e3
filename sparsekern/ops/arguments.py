"""Checks that the public ops share, and autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.backends import AUTOMATIC
from sparsekern.formats.pattern import Pattern

__all__ = ["autocast", "backend_name", "check_bias", "check_pattern", "check_tensor", "check_values"]


def check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")


def check_pattern(pattern: Pattern, dimensions: int, tensor: Tensor, name: str) -> None:
    """Raise unless `tensor` is one, and `pattern` is on its device and of a weight of `dimensions`.

    A pattern cannot be without its bits, so it goes with tensors of the meta device wherever it is.
    """
    check_tensor(name, tensor)
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a sparsekern.Pattern, got {type(pattern).__name__}")
    if len(pattern.shape) != dimensions:
        raise ValueError(f"pattern must have {dimensions} dimensions, got shape {tuple(pattern.shape)}")
    if pattern.data.device != tensor.device and not tensor.is_meta:
        raise ValueError(
            f"pattern and {name} must be on one device, got {pattern.device} and {tensor.device}"
        )


def check_values(values: Tensor, pattern: Pattern, like: Tensor, name: str) -> None:
    """Raise unless `values` are the pattern's, compact or dense, and match the tensor `like`."""
    _check_like("values", values, like, name)
    shape = values.shape
    if shape != (pattern.nnz,) and shape != pattern.shape:
        raise ValueError(
            f"values must have shape ({pattern.nnz},), one for each active position, or the dense weight's "
            f"{pattern.shape}, got {tuple(shape)}"
        )


def check_bias(bias: Tensor | None, pattern: Pattern, like: Tensor, name: str) -> None:
    if bias is None:
        return
    _check_like("bias", bias, like, name)
    if bias.shape != pattern.shape[:1]:
        raise ValueError(f"bias must have shape ({pattern.shape[0]},), got {tuple(bias.shape)}")


def _check_like(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    """Raise unless `tensor` is one, of the dtype and on the device of `like`, which has been checked."""
    if not isinstance(tensor, Tensor) or tensor.dtype != like.dtype:
        check_tensor(name, tensor)
        raise TypeError(f"{name} and {like_name} must have one dtype, got {tensor.dtype} and {like.dtype}")
    if tensor.device != like.device:
        raise ValueError(
            f"{name} and {like_name} must be on one device, got {tensor.device} and {like.device}"
        )


# What autocast touches: float64 and integers stay.
_CAST = (torch.float32, torch.float16, torch.bfloat16)


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in autocast's dtype where autocast is on for their device, as `torch.nn.functional.linear`
    has them; as they are elsewhere."""
    device = "cpu" if x.is_cpu else x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return (x, *others)
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype) if tensor is not None and tensor.dtype in _CAST else tensor
        for tensor in (x, *others)
    )


def backend_name(backend: str | None) -> str:
    """`backend` as a schema carries it."""
    if backend is None:
        return AUTOMATIC
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a string or None, got {type(backend).__name__}")
    if not backend:
        raise ValueError("backend must be the name of one, or None for the first that can run, got ''")
    return backend
