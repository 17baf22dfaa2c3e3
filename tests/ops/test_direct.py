"""The short way to `linear`: the bits of the general one, and only for calls that are like any other."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import sparsekern as sk
from sparsekern.ops.direct import direct_linear

GENERATOR = torch.Generator().manual_seed(0)
PATTERN = sk.Pattern.random((7, 13), 0.5, generator=GENERATOR)
WEIGHT = torch.randn(7, 13, generator=GENERATOR)
VALUES, BIAS = PATTERN.pack(WEIGHT), torch.randn(7, generator=GENERATOR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(13,), (1, 13), (33, 13), (2, 3, 13), (0, 13), (4, 0, 13)], ids=str)
@pytest.mark.parametrize("bias", [None, BIAS], ids=["no bias", "bias"])
def test_the_same_bits(dtype, shape, bias):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    values, bias = VALUES.to(dtype), None if bias is None else bias.to(dtype)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = direct_linear(x, values, PATTERN, bias)
            assert torch.equal(found, sk.ops.linear(x, values, PATTERN, bias, backend="cpp"))
            assert found.shape == (*shape[:-1], 7)
            assert found.dtype == dtype
            assert torch.equal(sk.ops.linear(x, values, PATTERN, bias), found)


def test_a_layer_takes_it_without_gradients_only(monkeypatch):
    taken = []

    def spy(*arguments):
        taken.append(direct_linear(*arguments))
        return taken[-1]

    monkeypatch.setitem(sk.ops.linear.__globals__, "direct_linear", spy)
    layer = sk.nn.SparseLinear(13, 7, sparsity=0.5).eval()
    x = torch.randn(2, 13)
    y = layer(x)
    assert taken == []
    assert y.requires_grad
    with torch.inference_mode():
        assert layer(x) is taken[0]
    assert torch.equal(taken[0], y)
    with torch.no_grad():
        layer.to(torch.float64)(x.double())
        assert taken[1] is not None
        masked = sk.nn.SparseLinear(13, 7, sparsity=0.5, storage="masked")
        masked(x)
    assert taken[2] is None


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


class Subclass(torch.Tensor):
    pass


X = torch.randn(2, 13, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "arguments",
    [
        (X.as_subclass(Subclass), VALUES, PATTERN, BIAS),
        (X, VALUES.as_subclass(Subclass), PATTERN, BIAS),
        (X, VALUES, PATTERN, BIAS.as_subclass(Subclass)),
        (X.T.contiguous().T, VALUES, PATTERN, BIAS),
        (torch._neg_view(X), VALUES, PATTERN, BIAS),
        (X, torch._neg_view(VALUES), PATTERN, BIAS),
        (X, VALUES, PATTERN, torch._neg_view(BIAS)),
        (X, VALUES.repeat_interleave(2)[::2], PATTERN, BIAS),
        (X, VALUES, PATTERN, BIAS.repeat_interleave(2)[::2]),
        (X, WEIGHT, PATTERN, BIAS),
        (X.to("meta"), VALUES, PATTERN, BIAS),
        (X, VALUES.to("meta"), PATTERN, BIAS),
        (X.to_sparse(), VALUES, PATTERN, BIAS),
        (X.half(), VALUES.half(), PATTERN, BIAS.half()),
        # And what is wrong, of which the general way says what.
        (X.double(), VALUES, PATTERN, BIAS),
        (X, VALUES.double(), PATTERN, BIAS),
        (X, VALUES, PATTERN, BIAS.double()),
        (X[:, :12].contiguous(), VALUES, PATTERN, BIAS),
        (X.reshape(13, 2), VALUES, PATTERN, BIAS),
        (X.sum(), VALUES, PATTERN, BIAS),
        (X, VALUES[:-1], PATTERN, BIAS),
        (X, VALUES[:, None], PATTERN, BIAS),
        (X, VALUES, PATTERN, BIAS[:-1]),
        (X, VALUES, PATTERN, BIAS[None]),
        (X, VALUES, PATTERN.data, BIAS),
        (X, VALUES, sk.Pattern.random((7, 13, 1, 1), 0.5), BIAS),
        (None, VALUES, PATTERN, BIAS),
        (X, None, PATTERN, BIAS),
        (X, VALUES, PATTERN, 3.0),
    ],
)
@torch.no_grad()
def test_what_goes_the_general_way(arguments):
    assert direct_linear(*arguments) is None


@torch.no_grad()
def test_who_watches_goes_the_general_way():
    call = (X, VALUES, PATTERN, BIAS)
    assert direct_linear(*call) is not None
    with Passing():
        assert direct_linear(*call) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert direct_linear(*call) is None
        assert sk.ops.linear(*call).dtype == torch.bfloat16
    with forward_ad.dual_level():
        assert direct_linear(*call) is None
    inside = []
    torch.func.grad(lambda x: inside.append(direct_linear(x, *call[1:])) or x.sum())(X)
    assert inside == [None]
    torch.jit.trace(lambda x: inside.append(direct_linear(x, *call[1:])) or x, X, check_trace=False)
    assert inside[:2] == [None, None]


@torch.no_grad()
def test_a_compiled_layer_is_one_graph():
    layer = sk.nn.SparseLinear(13, 7, sparsity=0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), layer(X))
