"""The Triton backend: the kernels of ``sparsekern.kernels`` on torch tensors.

A public function for each op that has a kernel, under its name. Triton is imported with the first kernel.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os

import torch
from torch import Tensor

from sparsekern.candidates import largest
from sparsekern.formats.known import index_of
from sparsekern.geometry import Sizes

__all__ = [
    "conv2d",
    "conv2d_grad_input",
    "conv2d_grad_values",
    "gather_two_four",
    "grow_candidates",
    "linear",
    "linear_grad_input",
    "linear_grad_values",
    "pack",
    "two_four_linear",
    "two_four_linear_grad_input",
    "two_four_linear_grad_values",
    "unpack",
    "unpack_two_four",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Ops whose kernels move values and compute nothing, and so take any dtype.
BIT_COPIES = ("pack", "unpack", "gather_two_four", "unpack_two_four")
# Earlier ones fail to compile some of the kernels.
LEAST_VERSION = (3, 6)
# Matrix instructions on bfloat16, and asynchronous copies, came with it.
LEAST_CAPABILITY = (8, 0)


@functools.cache
def unusable() -> str | None:
    """Why no kernel can be compiled, None where they can. Triton is not imported, which takes a while."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: `pip install triton`"
    try:
        found = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None  # built from source, or of another distribution
    if tuple(map(int, found.split(".")[:2])) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        return f"it needs Triton {least} or newer, as comes with PyTorch 2.11, and {found} is installed"
    return None


def is_interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: Sizes) -> Tensor:
    from sparsekern.kernels.linear import linear

    y = linear(_matrix(x, shape[1]), _plain(values), _plain(bias), index_of(pattern))
    return y.view(*x.shape[:-1], shape[0])


def linear_grad_input(grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sizes) -> Tensor:
    from sparsekern.kernels.linear_grad_input import linear_grad_input

    grad_x = linear_grad_input(_matrix(grad_y, shape[0]), _plain(values), index_of(pattern))
    return grad_x.view(*grad_y.shape[:-1], shape[1])


def linear_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, values_shape: Sizes
) -> Tensor:
    from sparsekern.kernels.linear_grad_values import linear_grad_values

    matrices = _matrix(grad_y, shape[0]), _matrix(x, shape[1])
    return linear_grad_values(*matrices, index_of(pattern), masked=len(values_shape) > 1)


def conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, shape: Sizes, geometry: Sizes
) -> Tensor:
    from sparsekern.kernels.conv2d import conv2d

    return conv2d(x.resolve_neg(), _plain(values), _plain(bias), index_of(pattern), tuple(geometry))


def conv2d_grad_input(
    grad_y: Tensor, values: Tensor, pattern: Tensor, shape: Sizes, input_size: Sizes, geometry: Sizes
) -> Tensor:
    from sparsekern.kernels.conv2d_grad_input import conv2d_grad_input

    grad_y, size = grad_y.resolve_neg(), tuple(input_size)
    return conv2d_grad_input(grad_y, _plain(values), index_of(pattern), size, tuple(geometry))


def conv2d_grad_values(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, values_shape: Sizes, geometry: Sizes
) -> Tensor:
    from sparsekern.kernels.conv2d_grad_values import conv2d_grad_values

    grad_y, x = grad_y.resolve_neg(), x.resolve_neg()
    return conv2d_grad_values(grad_y, x, index_of(pattern), tuple(values_shape), tuple(geometry))


def pack(dense: Tensor, pattern: Tensor, nnz: int) -> Tensor:
    from sparsekern.kernels.values import pack

    return pack(_plain(dense), index_of(pattern))


def unpack(values: Tensor, pattern: Tensor, shape: Sizes) -> Tensor:
    from sparsekern.kernels.values import unpack

    return unpack(_plain(values), index_of(pattern))


def grow_candidates(
    grad_y: Tensor, x: Tensor, pattern: Tensor, shape: Sizes, count: int
) -> tuple[Tensor, Tensor]:
    from sparsekern.kernels.grow_candidates import Passes

    index = index_of(pattern)
    passes = Passes(_matrix(grad_y, shape[0]), _matrix(x, shape[1]), index)
    return largest(passes, shape[0] * shape[1] - index.layout.nnz, count)


def two_four_linear(x: Tensor, values: Tensor, bias: Tensor | None, metadata: Tensor) -> Tensor:
    from sparsekern.kernels.two_four import two_four_linear

    rows, kept = values.shape
    y = two_four_linear(_matrix(x, 2 * kept), _plain(values), _plain(bias), _plain(metadata))
    return y.view(*x.shape[:-1], rows)


def two_four_linear_grad_input(grad_y: Tensor, values: Tensor, metadata: Tensor) -> Tensor:
    from sparsekern.kernels.two_four import two_four_linear_grad_input

    rows, kept = values.shape
    grad_x = two_four_linear_grad_input(_matrix(grad_y, rows), _plain(values), _plain(metadata))
    return grad_x.view(*grad_y.shape[:-1], 2 * kept)


def two_four_linear_grad_values(grad_y: Tensor, x: Tensor, metadata: Tensor) -> Tensor:
    from sparsekern.kernels.two_four import two_four_linear_grad_values

    matrices = _matrix(grad_y, metadata.shape[0]), _matrix(x, x.shape[-1])
    return two_four_linear_grad_values(*matrices, _plain(metadata))


def gather_two_four(dense: Tensor, metadata: Tensor) -> Tensor:
    from sparsekern.kernels.two_four_values import gather_two_four

    return gather_two_four(_plain(dense), _plain(metadata))


def unpack_two_four(values: Tensor, metadata: Tensor) -> Tensor:
    from sparsekern.kernels.two_four_values import unpack_two_four

    return unpack_two_four(_plain(values), _plain(metadata))


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.resolve_neg().contiguous()


def _matrix(tensor: Tensor, columns: int) -> Tensor:
    """`tensor` as a matrix, of any strides."""
    tensor = tensor.resolve_neg()
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, columns)
