"""SparseLinear against F.linear on the dense weight, and its constructor."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsekern.formats.pattern import Pattern
from sparsekern.nn import SparseLinear


def make_layer(storage, in_features=37, out_features=21, sparsity=0.8, **keywords):
    torch.manual_seed(0)
    keywords = {"dtype": torch.float64, **keywords}
    layer = SparseLinear(in_features, out_features, sparsity=sparsity, storage=storage, **keywords)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "batch", [(5,), (), (2, 3), (0,), (2, 0, 3)], ids=["2-D", "1-D", "3-D", "empty", "empty middle"]
)
def test_output_and_gradients_equal_dense(batch, bias, storage):
    layer = make_layer(storage, bias=bias)
    if storage == "masked":
        with torch.no_grad():
            layer.weight[~layer.mask] = 7.0  # must take no part
    dense = torch.where(layer.mask, layer.to_dense().detach(), 0).requires_grad_()
    x = torch.randn(*batch, 37, dtype=torch.float64, requires_grad=True)
    x_dense = x.detach().clone().requires_grad_()
    y, expected = layer(x), F.linear(x_dense, dense, layer.bias)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    parameters = list(layer.parameters())
    got = torch.autograd.grad(y, [x, *parameters], grad)
    want = torch.autograd.grad(expected, [x_dense, dense, *([layer.bias] if bias else [])], grad)
    torch.testing.assert_close(got[0], want[0])
    if storage == "compact":
        torch.testing.assert_close(got[1], layer.pattern.pack(want[1]))
    else:
        torch.testing.assert_close(got[1], want[1] * layer.mask)
        assert not got[1][~layer.mask].any()
    if bias:
        torch.testing.assert_close(got[2], want[2])


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_non_contiguous_input(storage):
    layer = make_layer(storage)
    x = torch.randn(37, 5, dtype=torch.float64).T
    torch.testing.assert_close(layer(x), F.linear(x, layer.to_dense(), layer.bias))


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("active", [False, True], ids=["all zero", "all one"])
def test_extreme_masks(active, storage):
    mask = torch.full((4, 6), active)
    layer = SparseLinear(6, 4, mask=mask, storage=storage, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, layer.to_dense(), layer.bias))
    layer(x).sum().backward()
    assert layer.stored_weight.grad.shape == layer.stored_weight.shape


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_to_dense_is_differentiable(storage):
    layer = make_layer(storage)
    grad = torch.randn(21, 37, dtype=torch.float64)
    layer.to_dense().backward(grad)
    expected = layer.pattern.pack(grad) if storage == "compact" else grad * layer.mask
    torch.testing.assert_close(layer.stored_weight.grad, expected)


def test_sparsity_is_exact():
    assert SparseLinear(100, 30, sparsity=0.9).values.shape == (300,)
    assert SparseLinear(3, 3, sparsity=0.99).values.shape == (1,)


def test_the_three_ways_to_give_a_pattern_agree():
    generator = torch.Generator().manual_seed(3)
    drawn = SparseLinear(20, 10, sparsity=0.7, generator=generator)
    masked = SparseLinear(20, 10, mask=drawn.mask)
    shared = SparseLinear(20, 10, pattern=drawn.pattern)
    assert masked.pattern == drawn.pattern
    assert shared.pattern is drawn.pattern
    assert torch.equal(shared.mask, drawn.mask)


def test_generator_decides_everything():
    def draw(seed):
        return SparseLinear(20, 10, sparsity=0.7, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert torch.equal(draw(1).to_dense(), draw(1).to_dense())
    assert not torch.equal(draw(1).to_dense(), draw(2).to_dense())
    assert torch.equal(torch.get_rng_state(), before)


def test_default_init_is_per_neuron():
    a = SparseLinear(20, 10, sparsity=0.7, generator=torch.Generator().manual_seed(1))
    b = SparseLinear(20, 10, sparsity=0.7, init="per_neuron", generator=torch.Generator().manual_seed(1))
    c = SparseLinear(20, 10, sparsity=0.7, init="dense", generator=torch.Generator().manual_seed(1))
    assert torch.equal(a.values, b.values)
    assert not torch.equal(a.values, c.values)
    assert not a.bias.any()


def test_repr():
    layer = SparseLinear(100, 30, sparsity=0.9, storage="masked", bias=False)
    assert repr(layer) == (
        "SparseLinear(in_features=100, out_features=30, bias=False, sparsity=0.9000, nnz=300, storage=masked)"
    )


# The peak is Linux's VmHWM, in KiB: ru_maxrss of a new process begins with that of its parent.
MEASURE = """
import torch
from sparsekern.nn import SparseLinear

def peak():
    lines = open("/proc/self/status")
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

SparseLinear(64, 64, sparsity=0.5)
before = peak()
layer = SparseLinear(16384, 32768, sparsity=0.99, generator=torch.Generator().manual_seed(0))
assert layer.values.numel() == round(0.01 * 16384 * 32768)
assert layer.values.detach().std() > 0
print(peak() - before)
"""


def test_construction_never_holds_a_dense_weight():
    # A process of its own: the peak of this one may be high already.
    output = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    ).stdout
    # In KiB. A dense float32 weight alone is 2 GiB, a bool mask 512 MiB.
    assert int(output) < 400 * 1024


FULL = torch.ones(4, 6, dtype=torch.bool)
PATTERN = Pattern.from_mask(FULL)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of sparsity, mask and pattern must be given, got none"),
        ({"sparsity": 0.5, "pattern": PATTERN}, ValueError, "exactly one .* got sparsity and pattern"),
        ({"sparsity": 1.0}, ValueError, "sparsity"),
        ({"sparsity": -0.1}, ValueError, "sparsity"),
        ({"sparsity": math.nan}, ValueError, "sparsity"),
        ({"sparsity": True}, TypeError, "sparsity"),
        ({"sparsity": "0.5"}, TypeError, "sparsity"),
        (
            {"mask": torch.ones(4, 6)},
            TypeError,
            "mask must be a tensor of dtype torch.bool, got a torch.float32",
        ),
        ({"mask": [[True]]}, TypeError, "mask must .*torch.bool"),
        ({"mask": torch.ones(6, 4, dtype=torch.bool)}, ValueError, r"mask must .*\(4, 6\).*got \(6, 4\)"),
        ({"pattern": torch.ones(4, 6).bool()}, TypeError, "pattern must .*sparsekern.Pattern"),
        (
            {"pattern": Pattern.from_mask(torch.ones(3, 6, dtype=torch.bool))},
            ValueError,
            r"pattern must .*\(4, 6\).*got \(3, 6\)",
        ),
        (
            {"sparsity": 0.5, "storage": "dense"},
            ValueError,
            "storage must .*'compact' or 'masked', got 'dense'",
        ),
        ({"sparsity": 0.5, "init": "zeros"}, ValueError, "init must .*'per_neuron'.* got 'zeros'"),
        ({"sparsity": 0.5, "dtype": torch.int32}, TypeError, "dtype must .*floating-point.* got torch.int32"),
        ({"sparsity": 0.5, "in_features": 0}, ValueError, "in_features must be at least 1, got 0"),
        ({"sparsity": 0.5, "out_features": 4.0}, TypeError, "out_features must be an integer, got 4.0"),
        ({"sparsity": 0.5, "in_features": True}, TypeError, "in_features must be an integer, got True"),
        ({"sparsity": 0.5, "storage": None}, TypeError, "storage must be 'compact' or 'masked', got None"),
        ({"sparsity": 0.5, "bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
        ({"sparsity": 0.5, "generator": 3}, TypeError, "generator must be a torch.Generator or None, got 3"),
        ({"mask": FULL, "generator": 3, "init": None}, TypeError, "generator must be .* got 3"),
        ({"mask": FULL.to_sparse()}, TypeError, "mask must .*layout torch.strided, got torch.sparse_coo"),
        ({"mask": FULL.to("meta")}, ValueError, "mask must be a tensor with contents"),
    ],
    ids=[
        "nothing",
        "two",
        "sparsity one",
        "sparsity negative",
        "sparsity NaN",
        "sparsity bool",
        "sparsity str",
        "mask float",
        "mask list",
        "mask shape",
        "pattern tensor",
        "pattern shape",
        "storage",
        "init",
        "dtype",
        "no input",
        "float output",
        "bool input",
        "storage type",
        "bias",
        "generator",
        "unused generator",
        "sparse mask",
        "meta mask",
    ],
)
def test_bad_constructor_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SparseLinear(**{"in_features": 6, "out_features": 4, **arguments})


def test_numpy_integers_are_taken_as_ints():
    layer = SparseLinear(np.int64(6), np.int32(4), sparsity=np.float32(0.5))
    assert (type(layer.in_features), type(layer.out_features)) == (int, int)
    assert layer.values.shape == (12,)


def test_reset_parameters_refuses_what_is_no_generator():
    layer = SparseLinear(6, 4, sparsity=0.5)
    before = layer.values.detach().clone()
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator or None, got 3"):
        layer.reset_parameters(3)
    assert torch.equal(layer.values, before)


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 5), "6"),
        (torch.ones(()), "6"),
        (torch.ones(2, 6, dtype=torch.float64), "float64"),
        (torch.ones(2, 6, dtype=torch.int64), "int64"),
        (torch.ones(2, 6, device="meta"), "meta"),
    ],
    ids=["last dimension", "0-D", "dtype", "integer", "device"],
)
def test_bad_inputs(x, message, storage):
    layer = SparseLinear(6, 4, sparsity=0.5, storage=storage)
    with pytest.raises((TypeError, ValueError), match=message):
        layer(x)
