"""The shortest way to `linear`: without a gradient, on plain CPU tensors as the extension takes them.

For a few samples the product takes less time than what Python does around it, so the way through `Operator`
and the backends is worth avoiding. All is checked that the general way checks, only without a function for
each, and whatever is out of the ordinary is left to that way, errors included.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _has_storage, _len_torch_dispatch_stack
from torch.autograd import forward_ad

from sparsekern.cpp.memory import DTYPES
from sparsekern.formats.pattern import Pattern
from sparsekern.native import _C, threads
from sparsekern.ops.operator import PLAIN

__all__ = ["direct_linear"]


def direct_linear(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None) -> Tensor | None:
    """`sparsekern.ops.linear` where no gradient is recorded, or None when the call needs the general way.

    That is the case for what somebody watches or transforms (dispatch modes, `torch.func`, forward-mode
    gradients, tracing), under autocast, for subclasses, other devices, dtypes, layouts and lazily negated
    tensors, for masked storage, and for any argument that is wrong.
    """
    if (
        _len_torch_dispatch_stack() > 0
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()
    ):
        return None
    if type(x) not in PLAIN or type(values) not in PLAIN or type(pattern) is not Pattern:
        return None
    if not (_has_storage(x) and _has_storage(values)):
        return None  # a batched gradient's tensors, or those of another layout
    dtype, sizes, data = x.dtype, x.shape, pattern.data
    if len(pattern.shape) != 2 or not sizes or dtype not in DTYPES or not data.is_cpu:
        return None
    rows, columns = pattern.shape
    if (
        sizes[-1] != columns
        or not (x.is_cpu and x.is_contiguous())
        or x.is_neg()
        or not _is_vector(values, pattern.nnz, dtype)
    ):
        return None
    if bias is None:
        bias_address = bias_size = 0
    elif type(bias) in PLAIN and _has_storage(bias) and _is_vector(bias, rows, dtype):
        bias_address, bias_size = bias.data_ptr(), rows
    else:
        return None
    y = x.new_empty((*sizes[:-1], rows))
    size = x.numel()
    _C.linear(
        DTYPES[dtype],
        data.data_ptr(),
        data.numel(),
        values.data_ptr(),
        values.numel(),
        x.data_ptr(),
        size,
        size // columns,
        columns,
        1,
        bias_address,
        bias_size,
        y.data_ptr(),
        y.numel(),
        threads(),
    )
    return y


def _is_vector(tensor: Tensor, size: int, dtype: torch.dtype) -> bool:
    """Whether a plain tensor is a contiguous vector of that many elements in CPU memory."""
    return (
        tensor.dtype == dtype
        and tensor.dim() == 1
        and tensor.numel() == size
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )
