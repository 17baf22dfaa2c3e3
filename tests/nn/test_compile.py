"""Sparse layers under torch.compile, autocast and gradient checking."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsekern.formats.pattern import Pattern
from sparsekern.nn import SparseConv2d, SparseLinear


def network(storage, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    keywords = {"sparsity": 0.7, "storage": storage, "generator": generator, "dtype": dtype}
    return nn.Sequential(
        SparseConv2d(3, 8, 3, padding="same", **keywords),
        nn.Tanh(),
        SparseConv2d(8, 8, 3, stride=2, groups=2, **keywords),
        nn.Flatten(),
        SparseLinear(8 * 3 * 3, 5, **keywords),
    )


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize(
    "dynamic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["static", "dynamic"]
)
def test_compiles_as_one_graph(storage, dynamic):
    torch.compiler.reset()
    model = network(storage)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (4, 7):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(compiled(x), model(x))
        compiled(x).square().sum().backward()
        model(x).square().sum().backward()
    for mine, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.slow
@pytest.mark.parametrize("resize", [False, True], ids=["same nnz", "other nnz"])
def test_a_compiled_model_follows_a_new_pattern(resize):
    torch.compiler.reset()
    model = network("compact")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 8, 8)
    compiled(x)
    for layer in (model[0], model[2], model[4]):
        sparsity = 0.5 if resize else 0.7
        layer.set_pattern(Pattern.random(layer.pattern.shape, sparsity), resize=resize)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_autocast_computes_in_bfloat16_and_keeps_gradients_in_float32(storage):
    model = network(storage)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(torch.randn(4, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_second_derivatives(storage):
    model = network(storage, torch.float64)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    parameters = tuple(p.detach().requires_grad_() for p in model.parameters())
    names = [name for name, _ in model.named_parameters()]

    def output(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(output, parameters, fast_mode=True)
    assert torch.autograd.gradgradcheck(output, parameters, fast_mode=True)
