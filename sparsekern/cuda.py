"""The CUDA backend: the kernels of ``sparsekern._C.cuda`` on torch tensors, in builds made with nvcc.

A public function for each op that has a kernel, under its name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.native import _C

HEADER_WORDS = 16


def is_built() -> bool:
    """Whether the extension was compiled with CUDA."""
    return hasattr(_C, "cuda")


def transfer(values: Tensor, source: Tensor, target: Tensor, nnz: int) -> Tensor:
    values = values.resolve_neg().contiguous()
    moved = torch.empty(nnz, dtype=values.dtype, device=values.device)
    _C.cuda.transfer(
        source[:HEADER_WORDS].tolist(),
        source.data_ptr(),
        source.numel(),
        values.data_ptr(),
        values.numel(),
        target[:HEADER_WORDS].tolist(),
        target.data_ptr(),
        target.numel(),
        moved.data_ptr(),
        moved.numel(),
        values.element_size(),
        torch.cuda.current_stream(values.device).cuda_stream,
    )
    return moved
