"""A 2-D convolution whose weight is stored at its active positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern import ops
from sparsekern.formats.pattern import Pattern
from sparsekern.nn.base import SparseLayer
from sparsekern.nn.dense_arguments import Conv2dArguments, check_geometry


class SparseConv2d(Conv2dArguments, SparseLayer):
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
