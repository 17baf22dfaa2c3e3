"""``pack_two_four``, ``unpack_two_four``, ``gather_two_four``: between dense weights and 2:4 packed ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.backends import AUTOMATIC
from sparsekern.formats.checks import check_bool, describe
from sparsekern.formats.two_four import GROUP, TwoFour, metadata_width
from sparsekern.ops.arguments import backend_name
from sparsekern.ops.operator import Operator
from sparsekern.ops.plain_operator import PlainOperator

__all__ = [
    "as_two_four",
    "check_packable",
    "check_rows",
    "gather_two_four",
    "pack_at",
    "pack_two_four",
    "unpack_two_four",
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8)


def _pack_fake(weights: list[Tensor], transposable: bool, transpose: bool, backend: str) -> list[Tensor]:
    results = []
    for weight in weights:
        rows, columns = weight.shape
        for n, k in ((rows, columns), (columns, rows))[: 2 if transpose else 1]:
            results.append(weight.new_empty(n, k // 2))
            results.append(weight.new_empty(n, metadata_width(k), dtype=torch.uint8))
    return results


def _unpack_fake(values: Tensor, metadata: Tensor, backend: str) -> Tensor:
    return values.new_empty(values.shape[0], 2 * values.shape[1])


def _unpack_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, metadata, ctx.backend = inputs
    ctx.save_for_backward(metadata)


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gather(grad, *ctx.saved_tensors, ctx.backend), None, None


def _gather_fake(dense: Tensor, metadata: Tensor, backend: str) -> Tensor:
    return dense.new_empty(dense.shape[0], dense.shape[1] // 2)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _unpack(grad, *ctx.saved_tensors, ctx.backend), None, None


_pack = PlainOperator(
    "pack_two_four(Tensor[] weights, bool transposable, bool transpose, str backend) -> Tensor[]",
    fake=_pack_fake,
)
_unpack = Operator(
    "unpack_two_four(Tensor values, Tensor metadata, str backend) -> Tensor",
    fake=_unpack_fake,
    save=_unpack_save,
    backward=_unpack_backward,
)
_gather = Operator(
    "gather_two_four(Tensor dense, Tensor metadata, str backend) -> Tensor",
    fake=_gather_fake,
    save=_unpack_save,
    backward=_gather_backward,
)


def check_packable(weight: Any, transposable: bool, name: str = "weight") -> None:
    """Raise unless `weight` is a matrix whose groups of 4 are whole."""
    if not isinstance(weight, Tensor) or weight.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"{name} must be a tensor of one of the dtypes {names}, got {describe(weight)}")
    if weight.dim() != 2:
        raise ValueError(f"{name} must have 2 dimensions, got shape {tuple(weight.shape)}")
    for what, size, needed in zip(("rows", "columns"), weight.shape, (transposable, True), strict=True):
        if needed and (size % GROUP or size == 0):
            below = size // GROUP * GROUP
            near = f"{below} and {below + GROUP}" if below else f"{GROUP}"
            why = " for a mask that is 2:4 along both dimensions" if what == "rows" else ""
            raise ValueError(
                f"{name} must have a multiple of {GROUP} {what}{why}, got {size}; the nearest: {near}"
            )


def pack_two_four(
    weight: Tensor,
    *,
    transposable: bool = False,
    transpose: bool | None = None,
    backend: str | None = None,
) -> TwoFour:
    r"""The 2 largest magnitudes of every 4 neighbours in a row, packed; and the transpose, in the same pass.

    Parameters
    ----------
    weight : Tensor
        ``(N, K)``, K a multiple of 4; float16, bfloat16, float32, float64 or int8, any strides.
    transposable : bool
        False: every group of 4 columns in a row keeps its 2 largest magnitudes; ties go to the first columns.
        True: every 4 x 4 tile keeps 2 positions of each row and of each column, by the one of all 90 such
        masks with the largest sum of magnitudes (in float64, pairs of a row first, then pairs of rows); of
        equal sums, the one that keeps the earliest positions, row by row. N is a multiple of 4 then.
    transpose : bool, optional
        Pack the transpose too, as `TwoFour.transposed`; by default where the mask is transposable.
    backend : str, optional
        ``"cpp"``, ``"cuda"`` or ``"reference"``; by default the first that can run the input, never the
        reference.

    Returns
    -------
    TwoFour
        Not differentiable: for training see `two_four_linear_dense`, and `gather_two_four` for a fixed mask.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above; on a CPU, for NaN or an infinity in the weight. A GPU is not
        waited for: there NaN counts as the largest, so that it is kept and shows.
    BackendError
        When no backend, or not the named one, can run the input.

    Notes
    -----
    Transposable masks: Hubara et al., *Accelerated Sparse Neural Training: A Provable and Efficient Method to
    Find N:M Transposable Masks*, NeurIPS 2021, which approximates what is exact here.
    """
    check_bool(transposable, "transposable")
    transpose = transposable if transpose is None else check_bool(transpose, "transpose")
    if transpose and not transposable:
        raise ValueError(
            "transpose must be False unless transposable is True: W.T would not be 2:4, got True"
        )
    check_packable(weight, transposable)
    if weight.layout != torch.strided:
        raise TypeError(f"weight must be a tensor of layout torch.strided, got {weight.layout}")
    parts = _pack([weight.detach()], transposable, transpose, backend_name(backend))
    return as_two_four(parts)


def as_two_four(parts: list[Tensor]) -> TwoFour:
    """What the op returns for one weight as a `TwoFour`."""
    return TwoFour(parts[0], parts[1], TwoFour(parts[2], parts[3]) if len(parts) > 2 else None)


def unpack_two_four(packed: TwoFour, *, backend: str | None = None) -> Tensor:
    """The dense matrix ``(N, K)``, 0 where nothing is stored; differentiable in ``packed.values``."""
    check_rows(packed)
    return _unpack(packed.values, packed.metadata, backend_name(backend))


def gather_two_four(dense: Tensor, packed: TwoFour, *, backend: str | None = None) -> Tensor:
    """The elements ``(N, K / 2)`` of a dense matrix at the positions that `packed` stores; differentiable.

    Parameters
    ----------
    dense : Tensor
        ``(N, K)``, on packed's device.
    packed : TwoFour
        Of which only the positions are used.
    backend : str, optional
        As in `pack_two_four`.

    Raises
    ------
    TypeError, ValueError, BackendError
        As in `pack_two_four`.
    """
    check_rows(packed)
    if not isinstance(dense, Tensor) or tuple(dense.shape) != packed.shape:
        raise ValueError(f"dense must be a tensor of shape {packed.shape}, got {describe(dense)}")
    if dense.device != packed.device:
        raise ValueError(f"dense must be on packed's device {packed.device}, got {dense.device}")
    return _gather(dense, packed.metadata, backend_name(backend))


def pack_at(weight: Tensor, metadata: Tensor, metadata_t: Tensor | None = None) -> TwoFour:
    """`weight` packed at the positions that metadata says, of its transpose too if given; no gradient."""
    weight = weight.detach()
    transposed = None if metadata_t is None else pack_at(weight.T, metadata_t)
    return TwoFour(_gather(weight, metadata, AUTOMATIC), metadata, transposed)


def check_rows(packed: Any) -> None:
    """Raise unless `packed` is a `TwoFour` in the layout "rows"."""
    if not isinstance(packed, TwoFour):
        raise TypeError(f"packed must be a sparsekern.TwoFour, got {describe(packed)}")
    if packed.layout != "rows":
        raise ValueError(f"packed must have the layout 'rows', got {packed.layout!r}")
