"""A linear layer of 2:4 weights in eight bits, for inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.formats.checks import describe
from sparsekern.formats.two_four import TwoFour
from sparsekern.ops.two_four_values import check_rows

__all__ = ["TwoFourLinearInt8"]


class TwoFourLinearInt8(nn.Module):
    r"""`TwoFourLinear` with int8 weights, one scale for each output, and int8 activations.

    Sums are exact integers of 32 bits, see `sparsekern.ops.two_four_linear_int8`. There is nothing to train:
    all tensors are buffers. `quantize_int8_` makes these layers.

    Parameters
    ----------
    packed : TwoFour
        Floating-point ``(out_features, in_features)``; quantized here, by
        `sparsekern.ops.quantize_two_four`.
    bias : Tensor, optional
        ``(out_features,)``; stays as it is.
    x_scale : float, optional
        One scale for all activations (static); by default each sample has its own (dynamic).

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, or the weights cannot be quantized.
    """

    # Buffers that keep their dtype wherever the module goes.
    SCALES = ("scale", "x_scale")

    def __init__(self, packed: TwoFour, bias: Tensor | None = None, *, x_scale: float | None = None) -> None:
        super().__init__()
        check_rows(packed)
        self.out_features, self.in_features = packed.shape
        quantized, scale = ops.quantize_two_four(packed)
        if bias is not None and (not isinstance(bias, Tensor) or bias.shape != (self.out_features,)):
            raise ValueError(f"bias must be a tensor of shape ({self.out_features},), got {describe(bias)}")
        self.register_buffer("values", quantized.values)
        self.register_buffer("metadata", quantized.metadata)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("x_scale", None if x_scale is None else _checked_scale(x_scale, scale.device))

    @property
    def packed(self) -> TwoFour:
        """The weights, int8."""
        return TwoFour(self.values, self.metadata)

    @property
    def mask(self) -> Tensor:
        """A new bool tensor (out_features, in_features): True where a weight is stored."""
        return self.packed.to_mask()

    def to_dense(self) -> Tensor:
        """The float32 weight that the integers stand for."""
        return ops.unpack_two_four(self.packed).float() * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return ops.two_four_linear_int8(x, self.packed, self.scale, bias, x_scale=self.x_scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TwoFourLinearInt8:
        before = {name: self._buffers[name] for name in self.SCALES if self._buffers[name] is not None}
        super()._apply(fn, recurse)
        for name, scale in before.items():
            self._buffers[name] = scale.to(self._buffers[name].device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        try:
            self._check_state(state_dict, prefix)
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{prefix}{error}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _check_state(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        values, metadata = (state_dict.get(prefix + name) for name in ("values", "metadata"))
        if values is not None and values.dtype != torch.int8:
            raise TypeError(f"values must be int8, got {describe(values)}")
        if values is not None and metadata is not None and not metadata.is_meta:
            TwoFour(values, metadata).check()

    def extra_repr(self) -> str:
        activations = "dynamic" if self.x_scale is None else "static"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activations={activations}"
        )


def _checked_scale(x_scale: Any, device: torch.device) -> Tensor:
    scale = torch.tensor(float(x_scale), dtype=torch.float32, device=device)
    if not bool(scale.isfinite()) or float(scale) < torch.finfo(torch.float32).tiny:
        raise ValueError(f"x_scale must be a positive finite float32, got {x_scale}")
    return scale
