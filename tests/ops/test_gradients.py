"""Derivatives by finite differences, of first and second order, and only those asked for."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from sparsekern.backends import select
from sparsekern.formats import Pattern
from sparsekern.ops import (
    conv2d,
    conv2d_grad_input,
    conv2d_grad_values,
    linear,
    linear_grad_input,
    linear_grad_values,
    operator,
    pack,
    transfer,
    unpack,
)

GEOMETRY = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 2}
X_SIZE = (2, 4, 4, 5)


def random_tensor(*shape, seed=0, dtype=torch.float64):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return tensor.requires_grad_()


def random_pattern(shape, seed=0):
    return Pattern.from_mask(torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5)


MATRIX, OTHER = random_pattern((4, 7)), random_pattern((4, 7), seed=1)
KERNEL = random_pattern((6, 2, 2, 3))
Y_SIZE = tuple(conv2d(torch.zeros(X_SIZE), torch.zeros(KERNEL.nnz), KERNEL, **GEOMETRY).shape)


def weight_of(pattern, storage):
    shape = (pattern.nnz,) if storage == "compact" else pattern.shape
    return random_tensor(*shape, seed=1)


# Function of tensors, and the tensors for a storage.
CASES = {
    "linear": (
        lambda x, w, b: linear(x, w, MATRIX, b),
        lambda s: (random_tensor(3, 7), weight_of(MATRIX, s), random_tensor(4)),
    ),
    "linear of a vector": (
        lambda x, w, b: linear(x, w, MATRIX, b),
        lambda s: (random_tensor(7), weight_of(MATRIX, s), random_tensor(4)),
    ),
    "linear without bias": (
        lambda x, w: linear(x, w, MATRIX),
        lambda s: (random_tensor(2, 2, 7), weight_of(MATRIX, s)),
    ),
    "linear_grad_input": (
        lambda g, w: linear_grad_input(g, w, MATRIX),
        lambda s: (random_tensor(3, 4), weight_of(MATRIX, s)),
    ),
    "conv2d": (
        lambda x, w, b: conv2d(x, w, KERNEL, b, **GEOMETRY),
        lambda s: (random_tensor(*X_SIZE), weight_of(KERNEL, s), random_tensor(6)),
    ),
    "conv2d_grad_input": (
        lambda g, w: conv2d_grad_input(g, w, KERNEL, X_SIZE, **GEOMETRY),
        lambda s: (random_tensor(*Y_SIZE), weight_of(KERNEL, s)),
    ),
}
WITHOUT_WEIGHT = {
    "linear_grad_values": (
        lambda g, x: linear_grad_values(g, x, MATRIX),
        (random_tensor(3, 4), random_tensor(3, 7, seed=1)),
    ),
    "linear_grad_values, dense": (
        lambda g, x: linear_grad_values(g, x, MATRIX, dense=True),
        (random_tensor(3, 4), random_tensor(3, 7, seed=1)),
    ),
    "conv2d_grad_values": (
        lambda g, x: conv2d_grad_values(g, x, KERNEL, **GEOMETRY),
        (random_tensor(*Y_SIZE), random_tensor(*X_SIZE, seed=1)),
    ),
    "conv2d_grad_values, dense": (
        lambda g, x: conv2d_grad_values(g, x, KERNEL, dense=True, **GEOMETRY),
        (random_tensor(*Y_SIZE), random_tensor(*X_SIZE, seed=1)),
    ),
    "pack": (lambda dense: pack(dense, KERNEL), (random_tensor(*KERNEL.shape),)),
    "unpack": (lambda values: unpack(values, KERNEL), (random_tensor(KERNEL.nnz),)),
    "transfer": (lambda values: transfer(values, MATRIX, OTHER), (random_tensor(MATRIX.nnz),)),
}


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize(("function", "tensors"), CASES.values(), ids=CASES.keys())
def test_finite_differences_with_a_weight(function, tensors, storage):
    assert gradcheck(function, tensors(storage))
    assert gradgradcheck(function, tensors(storage))


@pytest.mark.parametrize(("function", "tensors"), WITHOUT_WEIGHT.values(), ids=WITHOUT_WEIGHT.keys())
def test_finite_differences(function, tensors):
    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


def test_third_derivatives():
    x, weight = random_tensor(2, 7), weight_of(MATRIX, "compact")

    def gradient(x, weight):
        loss = linear(x, weight, MATRIX).tanh().sum()
        return torch.autograd.grad(loss, weight, create_graph=True)[0]

    assert gradgradcheck(gradient, (x, weight))


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernels that ran."""
    names = []

    def noted(op, *inputs):
        names.append(op)
        return select(op, *inputs)

    monkeypatch.setattr(operator, "select", noted)
    return names


@pytest.mark.parametrize("op", ["linear", "conv2d"])
@pytest.mark.parametrize(
    "wanted", [(), ("x",), ("values",), ("bias",), ("x", "bias"), ("x", "values")], ids=str
)
def test_only_the_gradients_asked_for_are_computed(calls, op, wanted):
    function, tensors = CASES[op]
    inputs = dict(zip(("x", "values", "bias"), tensors("compact")))
    y = function(*(t.detach().requires_grad_(name in wanted) for name, t in inputs.items()))
    assert calls == [op]
    assert y.requires_grad == bool(wanted)
    if wanted:
        y.sum().backward()
    expected = {"x": f"{op}_grad_input", "values": f"{op}_grad_values"}
    assert calls == [op, *(expected[name] for name in wanted if name in expected)]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_no_graph_where_none_is_wanted(op, context):
    function, tensors = CASES[op]
    with context():
        y = function(*tensors("compact"))
    assert not y.requires_grad
    assert torch.equal(y.clone(), function(*tensors("compact")))


@pytest.mark.parametrize("changed", [0, 1], ids=["x", "values"])
@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_changing_an_input_in_place_before_backward_is_an_error(op, changed):
    function, tensors = CASES[op]
    inputs = tensors("compact")
    y = function(*inputs)
    with torch.no_grad():
        inputs[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_gradients_accumulate_in_place(op):
    """A second backward adds; the gradient of bias is no view of the gradient of y."""
    function, tensors = CASES[op]
    inputs = tensors("compact")
    for _ in range(2):
        function(*inputs).sum().backward()
    once = torch.autograd.grad(function(*inputs).sum(), inputs)
    for tensor, grad in zip(inputs, once):
        torch.testing.assert_close(tensor.grad, 2 * grad)


def test_the_gradient_of_a_vector_and_its_bias_do_not_share_memory():
    x, weight, bias = CASES["linear of a vector"][1]("compact")
    y = linear(x, weight, MATRIX, bias)
    grad_y = torch.ones(4, dtype=torch.float64)
    y.backward(grad_y)
    bias.grad.zero_()
    assert torch.equal(grad_y, torch.ones(4, dtype=torch.float64))


def test_checkpointing():
    x, weight, bias = CASES["linear"][1]("compact")

    def loss(x, weight, bias):
        return linear(x, weight, MATRIX, bias).tanh().sum()

    expected = torch.autograd.grad(loss(x, weight, bias), (x, weight, bias))
    kept = torch.utils.checkpoint.checkpoint(loss, x, weight, bias, use_reentrant=False)
    for got, grad in zip(torch.autograd.grad(kept, (x, weight, bias)), expected):
        assert torch.equal(got, grad)
