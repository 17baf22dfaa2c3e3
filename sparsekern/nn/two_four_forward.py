"""What a forward pass does with a 2:4 weight: packs it, or takes what is there, and multiplies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _len_torch_dispatch_stack
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler

from sparsekern import ops
from sparsekern.formats.two_four import TwoFour
from sparsekern.ops.arguments import check_tensor
from sparsekern.ops.two_four_masked import straight_through


class TwoFourForward:
    """The part of `TwoFourLayer` that runs in a forward pass."""

    @property
    def _is_held(self) -> bool:
        return self.training and self.refresh_every > 1

    def _packed_for_forward(self) -> TwoFour:
        """As `packed`; keeps what the next pass can use."""
        if self._is_held:
            return self._count_and_pack()
        if self.method == "fixed" or self.training or torch.is_grad_enabled() or _is_traced():
            return self.packed
        return self._held.kept(self.weight, self._pack)

    # A compiled graph cannot tell a weight's version: it is left for this, and entered again.
    @_disable_dynamo
    @torch.no_grad()
    def _count_and_pack(self) -> TwoFour:
        packed = self.packed
        if not _is_traced():
            if self._held.is_due(self.weight, self.refresh_every):
                self._held.choose(packed)
            self._held.count(self.weight)
        return packed

    @property
    def _is_trained_dense(self) -> bool:
        return self.method != "fixed" and torch.is_grad_enabled() and self.weight.requires_grad

    def _product(self, x: Tensor) -> Tensor:
        """``F.linear(x, W, bias)`` with the weight as a matrix."""
        check_tensor("x", x)
        packed = self._packed_for_forward()
        if self.dense_below and x.numel() < self.dense_below * packed.shape[1]:
            return F.linear(x, self._masked_matrix(packed), self.bias)
        if self._is_trained_dense:
            return ops.two_four_linear_dense(x, self._matrix(), packed, self.bias, decay=self.decay)
        return ops.two_four_linear(x, packed, self.bias)

    def _masked_matrix(self, packed: TwoFour) -> Tensor:
        """The dense matrix with the mask applied; its gradient is what the method says."""
        if self._is_trained_dense:
            return straight_through(self._matrix(), packed, self.decay)
        return ops.unpack_two_four(packed)


def _is_traced() -> bool:
    """Whether more than plain PyTorch runs this; what is kept of it might be no tensor to use later."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or _len_torch_dispatch_stack() > 0
        or _are_functorch_transforms_active()
    )


def as_matrix(weight: Tensor) -> Tensor:
    """A convolution's weight with its columns in (kernel height, kernel width, input channel) order."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)
