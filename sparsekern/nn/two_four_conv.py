"""A 2-D convolution whose weight is 2:4 sparse."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.nn.dense_arguments import Conv2dArguments, check_geometry
from sparsekern.nn.two_four_checks import DECAY
from sparsekern.nn.two_four_layer import TwoFourLayer
from sparsekern.ops.arguments import check_tensor


class TwoFourConv2d(Conv2dArguments, TwoFourLayer):
    r"""``F.conv2d`` with two of every four neighbouring input channels of each weight zeroed.

    1 x 1 kernels without padding and groups are 2:4 products where x is in the memory format
    `torch.channels_last`. All others are dense convolutions with the masked weight, and no faster.

    Parameters
    ----------
    in_channels, out_channels : int
        x is (batch, in_channels, height, width), or without batch. `in_channels` / `groups` is a multiple
        of 4.
    kernel_size, stride, padding, dilation, groups, bias, padding_mode :
        As in `SparseConv2d`.
    method, transposable, refresh_every, decay, dense_below, init, device, dtype, generator :
        As in `TwoFourLinear`, for the matrix (out_channels, kernel height * kernel width * in_channels /
        groups); the rows of a batch are the pixels of the result. Where a convolution runs dense,
        `dense_below` is without effect.

    Raises
    ------
    TypeError, ValueError
        For an argument out of range or of another type.
    """

    size_names: ClassVar[tuple[str, str]] = ("out_channels", "in_channels / groups")

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
        method: str = "sr_ste",
        transposable: bool = False,
        refresh_every: int = 1,
        decay: float = DECAY,
        dense_below: int = 0,
        init: str | None = "dense",
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
            method=method,
            transposable=transposable,
            refresh_every=refresh_every,
            decay=decay,
            dense_below=dense_below,
            init=init,
            device=device,
            dtype=dtype,
            generator=generator,
            groups=geometry["groups"],
        )
        for name, value in geometry.items():
            setattr(self, name, value)

    def _is_product(self, x: Tensor) -> bool:
        """Whether the convolution is a product of rows of x's memory, one for each pixel, with the weight.

        Others run dense, on the masked weight: it costs more to unfold an image, or to bring the channels of
        its pixels together, than the 2:4 product saves; and bitmap tiles, whose pattern would have to be made
        for each new mask, break even at this sparsity.
        """
        one_by_one = self.kernel_size == (1, 1) and self.padding in ("valid", "same", (0, 0))
        return one_by_one and self.groups == 1 and x.dim() == 4 and x.stride(1) == 1

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("x", x)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if self._is_product(x):
            return self._pixels(x)
        weight = self._as_weight(self._masked_matrix(self._packed_for_forward()))
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def _pixels(self, x: Tensor) -> Tensor:
        """The product of each pixel's channels with the weight; the result is in x's memory format."""
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"x must have shape (batch, {self.in_channels}, height, width), got {tuple(x.shape)}"
            )
        vertical, horizontal = self.stride
        y = self._product(x[:, :, ::vertical, ::horizontal].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return y if last else y.contiguous()
