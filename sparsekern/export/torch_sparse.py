"""Sparse weights as the sparse tensors of PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.cpp.two_four_packing import to_cutlass
from sparsekern.export.dense import PACKED
from sparsekern.formats.checks import check_choice, check_integer, describe
from sparsekern.formats.two_four import TwoFour
from sparsekern.nn import SparseModule, TwoFourLinearInt8
from sparsekern.ops.two_four_values import check_rows, unpack_two_four


def to_torch_sparse(
    layer: SparseModule | TwoFourLinearInt8, layout: str = "csr", *, block_size: int | None = None
) -> Tensor:
    """The weight of a linear layer as a sparse tensor of PyTorch.

    Parameters
    ----------
    layer : SparseLinear, TwoFourLinear or TwoFourLinearInt8
    layout : str
        ``"csr"``, or ``"bsr"``: square blocks, of which those with an active position are stored.
    block_size : int, optional
        Of a block, for ``"bsr"`` only, 64 by default; divides both dimensions.

    Returns
    -------
    Tensor
        ``(N, K)``, of the weight's dtype and device. An active position is stored even where it is 0.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above; a convolution has no such matrix in PyTorch.
    """
    check_choice(layout, ("csr", "bsr"), "layout")
    if not isinstance(layer, PACKED) or len(layer.mask.shape) != 2:
        raise TypeError(f"layer must be a sparse linear layer, got {type(layer).__name__}")
    dense, mask = layer.to_dense().detach(), layer.mask
    if layout == "csr":
        if block_size is not None:
            raise ValueError(f"block_size must be left out for layout 'csr', got {describe(block_size)}")
        return csr_tensor(dense, mask)
    block = check_integer(64 if block_size is None else block_size, "block_size")
    if any(size % block for size in dense.shape):
        raise ValueError(
            f"block_size must be a divisor of both dimensions, {tuple(dense.shape)}, got {block}"
        )
    return bsr_tensor(dense, mask, block)


def csr_tensor(dense: Tensor, mask: Tensor) -> Tensor:
    """The positions of a matrix where `mask` is True."""
    rows, columns = mask.nonzero(as_tuple=True)
    starts, values = _row_starts(rows, mask), dense[rows, columns]
    return torch.sparse_csr_tensor(starts, columns, values, dense.shape, check_invariants=True)


def bsr_tensor(dense: Tensor, mask: Tensor, block: int) -> Tensor:
    """The square blocks of a matrix that have a position where `mask` is True."""
    stored = _blocks(mask, block).flatten(2).any(2)
    rows, columns = stored.nonzero(as_tuple=True)
    blocks = _blocks(dense, block)[rows, columns]
    starts = _row_starts(rows, stored)
    return torch.sparse_bsr_tensor(starts, columns, blocks, dense.shape, check_invariants=True)


def _row_starts(rows: Tensor, grid: Tensor) -> Tensor:
    counts = torch.bincount(rows, minlength=grid.shape[0])
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _blocks(matrix: Tensor, size: int) -> Tensor:
    """``(N / size, K / size, size, size)``."""
    rows, columns = (side // size for side in matrix.shape)
    return matrix.reshape(rows, size, columns, size).transpose(1, 2)


def to_semi_structured(packed: TwoFour, kind: str | None = None) -> Tensor:
    """A 2:4 weight as `torch.sparse.SparseSemiStructuredTensor`, which `torch.nn.functional.linear` takes.

    Parameters
    ----------
    packed : TwoFour
        In the layout "rows"; float16, bfloat16 or int8. float32 is 1:2 to these kernels, and refused.
    kind : str, optional
        ``"cutlass"``, which can be made on any device, or ``"cusparselt"``, whose arrangement is its
        library's secret, so that a GPU has to make it. By default what PyTorch itself would take on a GPU,
        CUTLASS elsewhere.

    Returns
    -------
    Tensor
        Without gradient. Products need a GPU.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, and for shapes that the kernels do not take; says which
        multiple is needed and the nearest sizes.
    """
    from torch.sparse import SparseSemiStructuredTensor as Torch
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT as CuSparseLt
    from torch.sparse import SparseSemiStructuredTensorCUTLASS as Cutlass

    check_rows(packed)
    packed.check()
    if kind is None:
        kind = "cusparselt" if packed.device.type == "cuda" and not Torch._FORCE_CUTLASS else "cutlass"
    check_choice(kind, ("cutlass", "cusparselt"), "kind")
    if kind == "cusparselt":
        if packed.device.type != "cuda":
            raise ValueError(f"packed must be on a GPU for kind 'cusparselt', got {packed.device}")
        return CuSparseLt.from_dense(unpack_two_four(packed).detach())
    host = packed.detach().to("cpu")
    values, metadata = (part.to(packed.device) for part in to_cutlass(host.values, host.metadata))
    return Cutlass(
        packed.shape,
        packed=values,
        meta=metadata,
        packed_t=None,
        meta_t=None,
        compressed_swizzled_bitmask=None,
    )
