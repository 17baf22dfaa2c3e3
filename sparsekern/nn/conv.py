"""A 2-D convolution whose weight is stored at its active positions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.formats.checks import check_choice, check_integer
from sparsekern.formats.pattern import Pattern
from sparsekern.nn.base import SparseLayer
from sparsekern.nn.checks import check_pair


class SparseConv2d(SparseLayer):
    r"""``F.conv2d(x, W, bias, stride, padding, dilation, groups)`` with a sparse :math:`W`.

    Weight, gradient and optimizer state have nnz elements. A state dict with another number of values is
    loaded before the optimizer is made, see `SparseLayer`.

    Parameters
    ----------
    in_channels, out_channels : int
        x is (batch, in_channels, height, width), batch may be 0, or (in_channels, height, width).
    kernel_size, stride, dilation : int or pair of int
        As in `torch.nn.Conv2d`.
    padding : int, pair of int, ``"valid"`` or ``"same"``
        Zeros on each side; ``"same"`` keeps height and width, needs stride 1, and puts the odd one of an even
        kernel's zeros at the bottom and right, as PyTorch does.
    groups : int
        Divides both channel counts.
    bias : bool
        Adds a dense bias (out_channels,), initialized to 0.
    padding_mode : str
        ``"zeros"``; other modes are refused.
    sparsity, mask, pattern, storage, init, device, dtype, generator :
        As in `SparseLinear`, for a weight of shape (out_channels, in_channels / groups, kernel height, kernel
        width).

    Raises
    ------
    TypeError, ValueError
        For an argument out of range, of another type, or none or several of `sparsity`, `mask` and `pattern`.
    """

    dense_type: ClassVar[type[nn.Module]] = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        sparsity: float | None = None,
        mask: Tensor | None = None,
        pattern: Pattern | None = None,
        storage: str = "compact",
        init: str | None = "per_neuron",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        geometry = check_geometry(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        super().__init__(
            (
                geometry["out_channels"],
                geometry["in_channels"] // geometry["groups"],
                *geometry["kernel_size"],
            ),
            bias,
            sparsity=sparsity,
            mask=mask,
            pattern=pattern,
            storage=storage,
            init=init,
            device=device,
            dtype=dtype,
            generator=generator,
            groups=geometry["groups"],
        )
        for name, value in geometry.items():
            setattr(self, name, value)

    @classmethod
    def dense_arguments(cls, module: nn.Module) -> dict[str, Any]:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        arguments = {name: getattr(module, name) for name in (*names, "padding_mode")}
        return {**arguments, "bias": module.bias is not None}

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        padding = self.padding
        if padding == "valid":
            padding = (0, 0)
        elif padding == "same":
            x, padding = self._pad_to_same(x)
        return ops.conv2d(
            x,
            self.stored_weight,
            self.pattern,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def _pad_to_same(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """x and the symmetric padding left to the convolution; an odd total is padded here."""
        total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if all(t % 2 == 0 for t in total):
            return x, (total[0] // 2, total[1] // 2)
        top, left = total[0] // 2, total[1] // 2
        return F.pad(x, (left, total[1] - left, top, total[0] - top)), (0, 0)

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1}
        parts += [
            f"{name}={getattr(self, name)}"
            for name, value in defaults.items()
            if getattr(self, name) != value
        ]
        return ", ".join([*parts, f"bias={self.bias is not None}", self._repr_tail()])


def check_geometry(
    in_channels: Any,
    out_channels: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
) -> dict[str, Any]:
    """The arguments of a convolution, checked, ints made pairs."""
    geometry: dict[str, Any] = {
        "in_channels": check_integer(in_channels, "in_channels"),
        "out_channels": check_integer(out_channels, "out_channels"),
        "kernel_size": check_pair(kernel_size, "kernel_size", 1),
        "stride": check_pair(stride, "stride", 1),
        "dilation": check_pair(dilation, "dilation", 1),
        "groups": check_integer(groups, "groups"),
        # The one mode that is supported.
        "padding_mode": check_choice(padding_mode, ("zeros",), "padding_mode"),
    }
    for name in ("in_channels", "out_channels"):
        if geometry[name] % geometry["groups"]:
            raise ValueError(f"groups must be a divisor of {name} = {geometry[name]}, got {groups}")
    geometry["padding"] = _check_padding(padding, geometry["stride"])
    return geometry


def _check_padding(padding: Any, stride: tuple[int, int]) -> tuple[int, int] | str:
    if not isinstance(padding, str):
        return check_pair(padding, "padding", 0)
    if padding not in ("same", "valid"):
        raise ValueError(
            f"padding must be an integer, a pair of integers, 'same' or 'valid', got {padding!r}"
        )
    if padding == "same" and stride != (1, 1):
        raise ValueError(f"padding must be numbers where stride is {stride}, got 'same'")
    return padding
