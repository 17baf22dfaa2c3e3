"""A linear layer whose weight is 2:4 sparse."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sparsekern.formats.checks import check_integer
from sparsekern.nn.dense_arguments import LinearArguments
from sparsekern.nn.two_four_checks import DECAY
from sparsekern.nn.two_four_layer import TwoFourLayer


class TwoFourLinear(LinearArguments, TwoFourLayer):
    r"""``F.linear(x, W, bias)`` with two of every four neighbours in a row of :math:`W` zeroed.

    .. math::
        y = x (M \odot W)^\top + b, \qquad
        \frac{\partial L}{\partial W} := \frac{\partial L}{\partial (M \odot W)} + \lambda (1 - M) \odot W

    The mask M keeps the two largest magnitudes of every four. With ``method="sr_ste"`` and ``"ste"`` weight,
    gradient and optimizer state are dense, and the mask follows the weight as that trains; with ``"fixed"``
    all three have half the elements, and the gradient is that of the product.

    Parameters
    ----------
    in_features, out_features : int
        x is (..., in_features) and y is (..., out_features). `in_features` is a multiple of 4.
    bias : bool
        Adds a dense bias (out_features,), initialized to 0.
    method : str
        ``"sr_ste"``: the gradient above. ``"ste"``: that with :math:`\lambda = 0`. ``"fixed"``: the mask
        never changes, and the weight is stored packed.
    transposable : bool
        The mask is 2:4 along columns too, so that the gradient of x is a 2:4 product; `out_features` is a
        multiple of 4. See `sparsekern.ops.pack_two_four`.
    refresh_every : int
        The mask is chosen anew at every so many changes of the weight, which are the steps of an optimizer.
    decay : float
        :math:`\lambda`, for ``"sr_ste"``. It is added in every backward pass through the layer: divide it by
        the number of passes that a step accumulates, and multiply it by a loss scale. It may be set at any
        time.
    dense_below : int
        Batches of fewer rows are multiplied by the dense weight with the mask applied; gradients are the
        same.
    init : str or None
        ``"dense"``, see `sparsekern.init.dense_`; None leaves the memory uninitialized, for weights that are
        loaded next.
    device, dtype :
        As in `torch.nn.Linear`.
    generator : torch.Generator, optional
        Source of a fixed mask, then of the initial weight.

    Raises
    ------
    TypeError, ValueError
        For an argument out of range or of another type.

    Notes
    -----
    Zhou et al., *Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch*, ICLR 2021.
    """

    size_names: ClassVar[tuple[str, str]] = ("out_features", "in_features")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
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
        in_features = check_integer(in_features, "in_features")
        out_features = check_integer(out_features, "out_features")
        super().__init__(
            (out_features, in_features),
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
        )
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x)
