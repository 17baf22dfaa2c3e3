"""``pack``, ``unpack`` and ``transfer``: values between dense tensors and patterns, differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparsekern.formats.pattern import Pattern
from sparsekern.ops.arguments import backend_name, check_pattern
from sparsekern.ops.operator import Operator

__all__ = ["pack", "transfer", "unpack"]


def _pack_fake(dense: Tensor, pattern: Tensor, nnz: int, backend: str) -> Tensor:
    return dense.new_empty((nnz,))


def _pack_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dense, pattern, _, ctx.backend = inputs
    ctx.shape = dense.shape
    ctx.save_for_backward(pattern)


def _pack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (pattern,) = ctx.saved_tensors
    return _unpack(grad, pattern, ctx.shape, ctx.backend), None, None, None


def _unpack_fake(values: Tensor, pattern: Tensor, shape: Sequence[int], backend: str) -> Tensor:
    return values.new_empty(tuple(shape))


def _unpack_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, pattern, _, ctx.backend = inputs
    ctx.nnz = values.shape[0]
    ctx.save_for_backward(pattern)


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (pattern,) = ctx.saved_tensors
    return _pack(grad, pattern, ctx.nnz, ctx.backend), None, None, None


def _transfer_fake(values: Tensor, source: Tensor, target: Tensor, nnz: int, backend: str) -> Tensor:
    return values.new_empty((nnz,))


def _transfer_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, source, target, _, ctx.backend = inputs
    ctx.nnz = values.shape[0]
    ctx.save_for_backward(source, target)


def _transfer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    source, target = ctx.saved_tensors
    return _transfer(grad, target, source, ctx.nnz, ctx.backend), None, None, None, None


_pack = Operator(
    "pack(Tensor dense, Tensor pattern, SymInt nnz, str backend) -> Tensor",
    fake=_pack_fake,
    save=_pack_save,
    backward=_pack_backward,
)
_unpack = Operator(
    "unpack(Tensor values, Tensor pattern, SymInt[] shape, str backend) -> Tensor",
    fake=_unpack_fake,
    save=_unpack_save,
    backward=_unpack_backward,
)
_transfer = Operator(
    "transfer(Tensor values, Tensor source, Tensor target, SymInt nnz, str backend) -> Tensor",
    fake=_transfer_fake,
    save=_transfer_save,
    backward=_transfer_backward,
)


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def pack(dense: Tensor, pattern: Pattern, *, backend: str | None = None) -> Tensor:
    """``dense[active]`` in the pattern's order.

    Parameters
    ----------
    dense : Tensor
        Of the pattern's shape, on its device; any floating-point dtype.
    pattern : Pattern
    backend : str, optional
        As in `linear`.

    Returns
    -------
    Tensor
        ``(nnz,)``.

    Raises
    ------
    TypeError, ValueError, BackendError
        When an argument is none of the above, or no backend can run it.
    """
    check_pattern(pattern, len(pattern.shape), dense, "dense")
    _check_shape("dense", dense, pattern.shape)
    return _pack(dense, pattern.data, pattern.nnz, backend_name(backend))


def unpack(values: Tensor, pattern: Pattern, *, backend: str | None = None) -> Tensor:
    """The dense weight: `values` at the active positions and 0 elsewhere.

    Parameters
    ----------
    values : Tensor
        ``(nnz,)``, on the pattern's device; any floating-point dtype.
    pattern : Pattern
    backend : str, optional
        As in `linear`.

    Returns
    -------
    Tensor
        Of the pattern's shape.

    Raises
    ------
    TypeError, ValueError, BackendError
        When an argument is none of the above, or no backend can run it.
    """
    check_pattern(pattern, len(pattern.shape), values, "values")
    _check_shape("values", values, (pattern.nnz,))
    return _unpack(values, pattern.data, pattern.shape, backend_name(backend))


def transfer(values: Tensor, source: Pattern, target: Pattern, *, backend: str | None = None) -> Tensor:
    """``target.pack(source.unpack(values))``: kept positions keep their value, new ones get 0.

    Parameters
    ----------
    values : Tensor
        ``(source.nnz,)``, on the patterns' device; any floating-point dtype.
    source, target : Pattern
        Of one shape and one tile size.
    backend : str, optional
        As in `linear`.

    Returns
    -------
    Tensor
        ``(target.nnz,)``.

    Raises
    ------
    TypeError, ValueError, BackendError
        When an argument is none of the above, or no backend can run it.
    """
    check_pattern(source, len(source.shape), values, "values")
    check_pattern(target, len(source.shape), values, "values")
    if source.shape != target.shape or source.tile_size != target.tile_size:
        raise ValueError(
            f"target must have the source's shape {source.shape} and tile size {source.tile_size}, "
            f"got {target.shape} and {target.tile_size}"
        )
    _check_shape("values", values, (source.nnz,))
    return _transfer(values, source.data, target.data, target.nnz, backend_name(backend))
