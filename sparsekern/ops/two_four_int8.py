"""``two_four_linear_int8`` and the quantization of its weight: 2:4 values in eight bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsekern.formats.checks import describe
from sparsekern.formats.two_four import TwoFour
from sparsekern.ops.arguments import backend_name, check_tensor
from sparsekern.ops.operator import Operator
from sparsekern.ops.two_four_values import check_rows

__all__ = ["quantize_two_four", "two_four_linear_int8"]

LARGEST = 127
INPUT_DTYPES = (torch.float32, torch.bfloat16)
# Beyond, a sum of K / 2 products of 127 * 127 could pass 32 bits.
MAX_COLUMNS = 2 * ((2**31 - 1) // LARGEST**2)


def _fake(
    x: Tensor,
    quantized: Tensor,
    bias: Tensor | None,
    metadata: Tensor,
    scale: Tensor,
    x_scale: Tensor | None,
    backend: str,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], quantized.shape[0]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        "two_four_linear_int8 has no gradient: rounding has none; train before quantizing"
    )


_int8 = Operator(
    "two_four_linear_int8(Tensor x, Tensor quantized, Tensor? bias, Tensor metadata, Tensor scale, "
    "Tensor? x_scale, str backend) -> Tensor",
    fake=_fake,
    save=_save,
    backward=_backward,
)


@torch.no_grad()
def quantize_two_four(packed: TwoFour) -> tuple[TwoFour, Tensor]:
    r"""A 2:4 weight in eight bits, symmetric, with one scale for each row (output channel).

    .. math:: s_n = \max_k |W_{nk}| / 127, \qquad q_{nk} = \mathrm{round}(W_{nk} / s_n)

    Parameters
    ----------
    packed : TwoFour
        ``(N, K)``, floating-point and finite.

    Returns
    -------
    quantized : TwoFour
        int8, between -127 and 127, at the same positions; without a transpose.
    scale : Tensor
        float32 ``(N,)``; 1 for a row of zeros.

    Raises
    ------
    TypeError, ValueError
        When `packed` is none of the above, or a row is so small or large that float32 has no such scale.
    """
    check_rows(packed)
    if not packed.dtype.is_floating_point:
        raise TypeError(f"packed must have floating-point values, got {packed.dtype}")
    # float64: the division is then exact enough for every float32 scale.
    values = packed.values.double()
    largest = values.abs().amax(1)
    if not bool(largest.isfinite().all()):
        row = int((~largest.isfinite()).nonzero()[0])
        raise ValueError(f"packed must have finite values, got {float(largest[row])} in row {row}")
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / LARGEST).float()
    out_of_range = (scale < torch.finfo(torch.float32).tiny) | ~scale.isfinite()
    if bool(out_of_range.any()):
        row = int(out_of_range.nonzero()[0])
        raise ValueError(
            f"packed must have rows whose largest magnitude / 127 is a normal float32, got "
            f"{float(largest[row]):.3g} in row {row}"
        )
    quantized = (values / scale.double()[:, None]).round().clamp(-LARGEST, LARGEST)
    return replace(packed, values=quantized.to(torch.int8), transposed=None), scale


def two_four_linear_int8(
    x: Tensor,
    packed: TwoFour,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""`two_four_linear` in integers: 8-bit weights and activations, 32-bit sums.

    .. math::
        y_{mn} = s^x_m s_n \sum_k q^x_{mk} q_{nk} + b_n, \qquad
        q^x_{mk} = \mathrm{clamp}(\mathrm{round}(x_{mk} / s^x_m), -127, 127)

    Parameters
    ----------
    x : Tensor
        ``(..., K)``, float32 or bfloat16.
    packed : TwoFour
        int8 ``(N, K)``, as `quantize_two_four` makes it.
    scale : Tensor
        float32 ``(N,)``.
    bias : Tensor, optional
        ``(N,)``, of x's dtype.
    x_scale : Tensor, optional
        float32, one element: the scale of all activations (static quantization). Without it each sample has
        ``max |x_m| / 127``, or 1 where it is 0 (dynamic quantization).
    backend : str, optional
        ``"cpp"`` or ``"reference"``; by default the first that can run the inputs, never the reference.

    Returns
    -------
    Tensor
        ``(..., N)`` of x's dtype. The integers are exact; rounding is to the nearest, ties to even.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above; for K so large that a sum could overflow.
    BackendError
        When no backend, or not the named one, can run the inputs.
    """
    check_rows(packed)
    check_tensor("x", x)
    rows, columns = packed.shape
    if packed.dtype != torch.int8:
        raise TypeError(f"packed must have int8 values, got {packed.dtype}")
    if x.dtype not in INPUT_DTYPES:
        raise TypeError(f"x must be float32 or bfloat16, got {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != columns:
        raise ValueError(f"x must have shape (..., {columns}), got {tuple(x.shape)}")
    if columns > MAX_COLUMNS:
        raise ValueError(f"packed must have at most {MAX_COLUMNS} columns for 32-bit sums, got {columns}")
    _check_part("scale", scale, (rows,), torch.float32, x)
    if bias is not None:
        _check_part("bias", bias, (rows,), x.dtype, x)
    if x_scale is not None:
        _check_part("x_scale", x_scale, (), torch.float32, x)
    if packed.device != x.device:
        raise ValueError(f"packed and x must be on one device, got {packed.device} and {x.device}")
    return _int8(x, packed.values, bias, packed.metadata, scale, x_scale, backend_name(backend))


def _check_part(name: str, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor) -> None:
    fits = isinstance(tensor, Tensor) and tuple(tensor.shape) == shape and tensor.dtype == dtype
    if not fits or tensor.device != x.device:
        raise ValueError(
            f"{name} must be a {dtype} tensor of shape {shape} on {x.device}, got {describe(tensor)}"
        )
