"""Sparse layers from dense modules, and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsekern.formats.pattern import Pattern
from sparsekern.nn import SparseConv2d, SparseLinear

both_storages = pytest.mark.parametrize("storage", ["compact", "masked"])
both_layers = pytest.mark.parametrize("kind", ["linear", "conv"])


DENSE = {
    "linear": lambda: nn.Linear(20, 12),
    "conv": lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, bias=False),
}


@both_layers
@both_storages
@pytest.mark.parametrize("given", ["mask", "pattern"])
def test_from_dense_and_back(kind, storage, given, make, draw_input):
    dense = DENSE[kind]().double().eval()
    dense.weight.requires_grad_(False)
    weight = dense.weight.clone()
    mask = torch.rand(weight.shape) < 0.3
    sparse = type(make(kind)).from_dense(
        dense, mask if given == "mask" else Pattern.from_mask(mask), storage=storage
    )
    assert sparse.stored_weight.dtype == torch.float64
    assert not sparse.stored_weight.requires_grad
    assert not sparse.training
    assert torch.equal(sparse.to_dense(), torch.where(mask, weight, 0))
    if storage == "masked":
        assert not sparse.weight[~mask].any()
    x = draw_input(kind, dtype=torch.float64)
    back = sparse.to_dense_module()
    assert type(back) is type(dense)
    assert not back.weight.requires_grad
    assert not back.training
    assert torch.equal(back.weight, torch.where(mask, weight, 0))
    torch.testing.assert_close(sparse(x), back(x))
    assert torch.equal(dense.weight, weight)
    if dense.bias is not None:
        with torch.no_grad():
            sparse.bias.add_(1)
            back.bias.add_(2)
        assert not torch.equal(sparse.bias, dense.bias)
        assert not torch.equal(back.bias, sparse.bias)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: SparseLinear.from_dense(nn.Conv2d(1, 1, 1), m),
            TypeError,
            r"module must .*nn.Linear, got",
        ),
        (
            lambda m: SparseLinear.from_dense(SparseLinear(2, 2, sparsity=0.5), m),
            TypeError,
            "module must .*already sparse",
        ),
        (lambda m: SparseLinear.from_dense(nn.LazyLinear(3), m), ValueError, "module must .*lazy"),
        (lambda m: SparseLinear.from_dense(nn.Linear(2, 2), m.float()), TypeError, "mask must .*torch.bool"),
        (
            lambda m: SparseLinear.from_dense(nn.Linear(3, 2), m),
            ValueError,
            r"mask must .*\(2, 3\).*got \(2, 2\)",
        ),
        (
            lambda m: SparseConv2d.from_dense(nn.Conv2d(2, 2, 1, padding_mode="reflect"), m[..., None, None]),
            ValueError,
            "padding_mode must be 'zeros'",
        ),
        (
            lambda m: SparseLinear.from_dense(nn.Linear(2, 2), m, storage="csr"),
            ValueError,
            "storage must .* got 'csr'",
        ),
    ],
    ids=["other type", "sparse", "lazy", "mask dtype", "mask shape", "padding mode", "storage"],
)
def test_from_dense_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(2, 2, dtype=torch.bool))
