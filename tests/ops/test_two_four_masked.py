"""straight_through: the masked weight, with the gradient of the dense one."""

from __future__ import annotations

import pytest
import torch

from sparsekern.ops import pack_two_four
from sparsekern.ops.two_four_masked import straight_through

both_masks = pytest.mark.parametrize("transposable", [False, True], ids=["rows", "transposable"])
decays = pytest.mark.parametrize("decay", [0.0, 0.3])


def draw(seed=0):
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@both_masks
@decays
def test_value_and_gradient(decay, transposable):
    weight, factor = draw().requires_grad_(), draw(1)
    packed = pack_two_four(weight, transposable=transposable)
    mask = packed.to_mask()
    masked = straight_through(weight, packed, decay)
    assert torch.equal(masked, torch.where(mask, weight, 0))
    (masked * factor).sum().backward()
    assert torch.equal(weight.grad, factor + decay * (weight * ~mask).detach())


def test_the_gradient_is_differentiable():
    weight, factor = draw().requires_grad_(), draw(1).requires_grad_()
    packed = pack_two_four(weight)
    (gradient,) = torch.autograd.grad(
        (straight_through(weight, packed, 0.3) * factor).sum(), weight, create_graph=True
    )
    of_weight, of_factor = torch.autograd.grad(gradient.sum(), (weight, factor))
    assert torch.equal(of_factor, torch.ones_like(factor))
    assert torch.equal(of_weight, torch.full_like(weight, 0.3))


@decays
def test_registered_op(decay):
    packed = pack_two_four(draw())
    for weight in (draw(), draw().requires_grad_()):
        torch.library.opcheck(
            torch.ops.sparsekern.two_four_masked.default, (weight, packed.values, packed.metadata, decay, "")
        )
