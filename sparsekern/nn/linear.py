"""A linear layer whose weight is stored at its active positions."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern import ops
from sparsekern.formats.checks import check_integer
from sparsekern.formats.pattern import Pattern
from sparsekern.nn.base import SparseLayer
from sparsekern.nn.dense_arguments import LinearArguments


class SparseLinear(LinearArguments, SparseLayer):
    r"""``F.linear(x, W, bias)`` with a sparse :math:`W`.

    Weight, gradient and optimizer state have nnz elements. A state dict with another number of values is
    loaded before the optimizer is made, see `SparseLayer`.

    .. math:: y = x W^\top + b, \qquad W_{ij} = 0 \text{ outside the pattern}

    Parameters
    ----------
    in_features, out_features : int
        x is (..., in_features) and y is (..., out_features); any number of leading dimensions, which may be
        empty.
    bias : bool
        Adds a dense bias (out_features,), initialized to 0.
    sparsity : float
        Fraction of zeros in [0, 1) of a random pattern; it has exactly ``round((1 - sparsity) * numel)``
        active positions, at least 1.
    mask : bool tensor (out_features, in_features)
        True where active.
    pattern : Pattern
        A ready pattern. Exactly one of `sparsity`, `mask` and `pattern` is given.
    storage : str
        ``"compact"``: Parameter ``values`` (nnz,), in the pattern's order. ``"masked"``: Parameter ``weight``
        (out_features, in_features), of which only the active positions take part; its gradient is 0
        elsewhere.
    init : str or None
        ``"per_neuron"``, ``"per_layer"`` or ``"dense"``, see `sparsekern.init`; None leaves the memory
        uninitialized, for weights that are loaded next.
    device, dtype :
        As in `torch.nn.Linear`. A layer on the meta device keeps its pattern on the CPU.
    generator : torch.Generator, optional
        Source of the random pattern, then of the initial weight.

    Raises
    ------
    TypeError, ValueError
        For an argument out of range, of another type, or none or several of `sparsity`, `mask` and `pattern`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
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
        in_features = check_integer(in_features, "in_features")
        out_features = check_integer(out_features, "out_features")
        super().__init__(
            (out_features, in_features),
            bias,
            sparsity=sparsity,
            mask=mask,
            pattern=pattern,
            storage=storage,
            init=init,
            device=device,
            dtype=dtype,
            generator=generator,
        )
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.stored_weight, self.pattern, self.bias)
