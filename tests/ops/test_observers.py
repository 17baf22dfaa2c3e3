"""Who observes a pattern hears of every contribution to its weight's gradient, however it is computed."""

from __future__ import annotations

import gc

import pytest
import torch

import sparsekern as sk
from sparsekern import ops
from sparsekern.ops.observers import observe, stop_observing


class Listener(list):
    """What it was told."""

    __hash__ = object.__hash__

    def __call__(self, gradient):
        self.append(gradient)


@pytest.fixture
def pattern():
    return sk.Pattern.random((12, 20), 0.7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def listener(pattern):
    told = Listener()
    observe(pattern, told)
    yield told
    stop_observing(pattern)


def factors(pattern, samples=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 20, generator=generator)
    return x, torch.randn(samples, 12, generator=generator), torch.randn(pattern.nnz, generator=generator)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_backward_pass_tells_what_the_gradient_is_made_of(compiled, pattern, listener):
    torch.compiler.reset()
    x, grad_y, values = factors(pattern)
    values.requires_grad_()

    def forward(x, values):
        return ops.linear(x, values, pattern)

    y = (torch.compile(forward, backend="aot_eager") if compiled else forward)(x, values)
    assert listener == []
    y.backward(grad_y)
    (told,) = listener
    assert torch.equal(told.grad_y, grad_y)
    assert torch.equal(told.x, x)
    assert torch.equal(told.at_active, values.grad)
    assert told.geometry is None
    torch.testing.assert_close(pattern.pack(told.grad_y.T @ told.x), values.grad)


def test_a_convolution_tells_its_geometry():
    pattern = sk.Pattern.random((8, 2, 3, 3), 0.5)
    told = Listener()
    observe(pattern, told)
    values = torch.randn(pattern.nnz, requires_grad=True)
    x = torch.randn(2, 4, 9, 9)
    ops.conv2d(x, values, pattern, stride=2, padding=(1, 0), dilation=1, groups=2).sum().backward()
    (gradient,) = told
    assert gradient.geometry == (2, 2, 1, 0, 1, 1, 2)
    dense = torch.nn.grad.conv2d_weight(x, pattern.shape, gradient.grad_y, 2, (1, 0), 1, 2)
    torch.testing.assert_close(pattern.pack(dense), values.grad)


def test_other_patterns_and_gradients_of_inputs_are_none_of_its_business(pattern, listener):
    x, grad_y, values = factors(pattern)
    ops.linear(x.requires_grad_(), values, pattern).backward(grad_y)  # values need no gradient
    twin = pattern.copy()
    assert twin == pattern
    ops.linear(x, values.requires_grad_(), twin).backward(grad_y)
    assert listener == []


def test_double_backward_contributes_twice(pattern, listener):
    x, grad_y, values = factors(pattern)
    x.requires_grad_()
    y = ops.linear(x, values.requires_grad_(), pattern)
    (grad_x,) = torch.autograd.grad(y, x, grad_y, create_graph=True)
    listener.clear()
    (grad_x.square().sum() + y.sum()).backward()
    assert len(listener) == 2
    torch.testing.assert_close(sum(told.at_active for told in listener), values.grad)
    torch.testing.assert_close(
        pattern.pack(sum(told.grad_y.T @ told.x for told in listener).detach()), values.grad
    )


def test_it_ends_when_it_is_told_to_or_the_observer_is_gone(pattern):
    x, grad_y, _ = factors(pattern)
    first, second = Listener(), Listener()
    observe(pattern, first)
    observe(pattern, second)  # which takes its place
    ops.linear_grad_values(grad_y, x, pattern)
    assert (len(first), len(second)) == (0, 1)
    stop_observing(pattern)
    stop_observing(pattern)
    ops.linear_grad_values(grad_y, x, pattern)
    assert len(second) == 1
    observe(pattern, first)
    del first
    gc.collect()
    ops.linear_grad_values(grad_y, x, pattern)
    observe(pattern, second)
    ops.linear_grad_values(grad_y, x, pattern)
    assert len(second) == 2
