"""The ops inside torch.func transforms, forward-mode derivatives and batched gradients."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

from sparsekern.formats import Pattern
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.ops import conv2d, linear

MATRIX = Pattern.random((6, 8), 0.5, generator=torch.Generator().manual_seed(0))
KERNEL = Pattern.random((6, 2, 3, 3), 0.5, generator=torch.Generator().manual_seed(0))


def random_tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OPS = {
    "linear": (lambda x, values: linear(x, values, MATRIX), (3, 8), MATRIX.nnz),
    "conv2d": (lambda x, values: conv2d(x, values, KERNEL, groups=2, padding=1), (2, 4, 5, 5), KERNEL.nnz),
}


@pytest.fixture(params=OPS.values(), ids=OPS.keys())
def problem(request):
    op, shape, nnz = request.param
    return op, random_tensor(*shape), random_tensor(nnz, seed=1)


def loss_of(op):
    return lambda x, values: op(x, values).tanh().sum()


def test_grad(problem):
    op, x, values = problem
    got = grad(loss_of(op), argnums=(0, 1))(x, values)
    leaves = [x.clone().requires_grad_(), values.clone().requires_grad_()]
    expected = torch.autograd.grad(loss_of(op)(*leaves), leaves)
    for mine, theirs in zip(got, expected):
        assert torch.equal(mine, theirs)


def test_grad_of_grad(problem):
    op, x, values = problem

    def norm(values):
        return grad(loss_of(op), argnums=1)(x, values).square().sum()

    leaf = values.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss_of(op)(x, leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    torch.testing.assert_close(grad(norm)(values), second)


def test_vjp(problem):
    op, x, values = problem
    y, pull_back = vjp(op, x, values)
    assert torch.equal(y, op(x, values))
    leaves = [x.clone().requires_grad_(), values.clone().requires_grad_()]
    grad_y = random_tensor(*y.shape, seed=2)
    for mine, theirs in zip(pull_back(grad_y), torch.autograd.grad(op(*leaves), leaves, grad_y)):
        assert torch.equal(mine, theirs)


def test_functional_call_of_a_model():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        SparseConv2d(2, 4, 3, sparsity=0.5, generator=generator),
        nn.Tanh(),
        nn.Flatten(),
        SparseLinear(36, 3, sparsity=0.5, generator=generator),
    ).double()
    x = random_tensor(4, 2, 5, 5)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    got = grad(lambda parameters: functional_call(model, parameters, (x,)).square().sum())(parameters)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)


def right_or_refused(compute, expected):
    """A transform that an op does not support raises; it never gives another number."""
    got = expected
    with contextlib.suppress(RuntimeError, NotImplementedError):
        got = compute()
    torch.testing.assert_close(got, expected)


def test_forward_mode_derivatives_are_never_silently_zero(problem):
    op, x, values = problem
    tangent, values_tangent = random_tensor(*x.shape, seed=2), random_tensor(*values.shape, seed=3)
    right_or_refused(lambda: jvp(lambda x: op(x, values), (x,), (tangent,))[1], op(tangent, values))
    expected = op(tangent, values) + op(x, values_tangent)
    right_or_refused(lambda: jvp(op, (x, values), (tangent, values_tangent))[1], expected)


def test_dual_tensors(problem):
    op, x, values = problem
    tangent = random_tensor(*x.shape, seed=2)

    def compute():
        with torch.autograd.forward_ad.dual_level():
            y = op(torch.autograd.forward_ad.make_dual(x, tangent), values)
            return torch.autograd.forward_ad.unpack_dual(y).tangent

    right_or_refused(compute, op(tangent, values))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap(problem):
    op, x, values = problem
    stacked = torch.stack([values, 2 * values])
    right_or_refused(lambda: vmap(op, (None, 0))(x, stacked), torch.stack([op(x, v) for v in stacked]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_per_sample_gradients(problem):
    op, x, values = problem

    def loss(values, sample):
        return op(sample.unsqueeze(0), values).tanh().sum()

    expected = []
    for sample in x:
        leaf = values.clone().requires_grad_()
        expected += torch.autograd.grad(loss(leaf, sample), leaf)
    right_or_refused(lambda: vmap(grad(loss), (None, 0))(values, x), torch.stack(expected))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_jacobians():
    x, values = random_tensor(8), random_tensor(MATRIX.nnz, seed=1)
    jacobian = torch.autograd.functional.jacobian(lambda x: linear(x, values, MATRIX), x)
    torch.testing.assert_close(jacobian, MATRIX.unpack(values))
    right_or_refused(lambda: jacrev(lambda x: linear(x, values, MATRIX))(x), jacobian)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("create_graph", [False, True], ids=["once", "differentiable"])
def test_batched_gradients(problem, create_graph):
    op, *inputs = problem
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y = op(*leaves).tanh()
    grads = random_tensor(3, *y.shape, seed=2)
    how = {"retain_graph": True, "create_graph": create_graph}
    each = [torch.autograd.grad(y, leaves, grad, **how) for grad in grads]
    expected = [torch.stack(gradients) for gradients in zip(*each)]
    got = torch.autograd.grad(y, leaves, grads, is_grads_batched=True, **how)
    torch.testing.assert_close(list(got), expected)
    if create_graph:
        seconds = [
            torch.autograd.grad(sum(tensor.square().sum() for tensor in gradients), leaves, retain_graph=True)
            for gradients in (got, expected)
        ]
        torch.testing.assert_close(*seconds)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vectorized_jacobians_and_hessians():
    x, values, bias = random_tensor(8), random_tensor(MATRIX.nnz, seed=1), random_tensor(6, seed=2)
    functional = torch.autograd.functional

    def loss(values, bias):
        return linear(x, values, MATRIX, bias).tanh().square().sum()

    jacobian = functional.jacobian(lambda x: linear(x, values, MATRIX), x, vectorize=True)
    torch.testing.assert_close(jacobian, MATRIX.unpack(values))
    expected = functional.hessian(loss, (values, bias))
    torch.testing.assert_close(functional.hessian(loss, (values, bias), vectorize=True), expected)


@pytest.mark.parametrize("mode", ["gradients", "no gradients"])
def test_a_jit_trace_calls_the_op(problem, mode):
    op, x, values = problem
    with torch.set_grad_enabled(mode == "gradients"):
        traced = torch.jit.trace(op, (x, values))
    other = torch.cat([x, 2 * x])
    assert torch.equal(traced(other, values), op(other, values))


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (functools.partial(SparseLinear, 8, 6), (3, 8)),
        (functools.partial(SparseConv2d, 4, 6, 3), (2, 4, 9, 9)),
    ],
    ids=["linear", "conv2d"],
)
def test_shapes_on_the_meta_device(layer, size):
    layer = layer(sparsity=0.5, device="meta")
    x = torch.empty(size, device="meta", requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.is_meta
    assert x.grad.shape == size
    assert layer.values.grad.shape == layer.values.shape
    on_the_cpu = type(layer)(*((8, 6) if len(size) == 2 else (4, 6, 3)), sparsity=0.5)
    assert y.shape == on_the_cpu(torch.zeros(size)).shape
