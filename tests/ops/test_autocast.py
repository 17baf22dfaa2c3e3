"""Autocast: the dtypes of results and gradients are those of torch.nn.functional."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsekern.backends import BackendError
from sparsekern.formats import Pattern
from sparsekern.ops import conv2d, linear

MATRIX = Pattern.random((6, 9), 0.5, generator=torch.Generator().manual_seed(0))
KERNEL = Pattern.random((6, 2, 3, 3), 0.5, generator=torch.Generator().manual_seed(0))
OPS = {"linear": (linear, F.linear, MATRIX, (4, 9)), "conv2d": (conv2d, F.conv2d, KERNEL, (3, 2, 5, 5))}
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(params=OPS.values(), ids=OPS.keys())
def op(request):
    return request.param


def random_tensor(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def with_gradients(function, inputs):
    y = function(*inputs)
    return [y, *torch.autograd.grad(y.float().square().sum(), inputs)]


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("x_dtype", FLOATS.values(), ids=[f"x {name}" for name in FLOATS])
@pytest.mark.parametrize("weight_dtype", FLOATS.values(), ids=[f"weight {name}" for name in FLOATS])
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, None], ids=["autocast", "enabled=False"])
def test_dtypes_are_those_of_the_dense_op(op, storage, x_dtype, weight_dtype, autocast_dtype):
    sparse, dense, pattern, shape = op
    x, weight, bias = (
        random_tensor(shape, x_dtype),
        random_tensor(pattern.shape, weight_dtype, seed=1),
        random_tensor((6,), weight_dtype, seed=2),
    )
    values = pattern.pack(weight).requires_grad_() if storage == "compact" else weight
    masked = (weight.detach() * pattern.to_mask()).requires_grad_()
    enabled = autocast_dtype is not None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        if not enabled and x_dtype != weight_dtype:
            with pytest.raises(TypeError, match="must have one dtype"):
                sparse(x, values, pattern, bias)
            return
        got = with_gradients(lambda x, values, bias: sparse(x, values, pattern, bias), (x, values, bias))
        expected = with_gradients(dense, (x, masked, bias))
    assert [tensor.dtype for tensor in got] == [tensor.dtype for tensor in expected]
    torch.testing.assert_close(got[0], expected[0])


def test_the_computation_is_that_of_bfloat16_inputs(op):
    sparse, _, pattern, shape = op
    x, values = random_tensor(shape, torch.float32), random_tensor((pattern.nnz,), torch.float32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sparse(x, values, pattern)
    assert torch.equal(y, sparse(x.bfloat16(), values.bfloat16(), pattern))


def test_float64_stays_float64(op):
    sparse, dense, pattern, shape = op
    x, values = random_tensor(shape, torch.float64), random_tensor((pattern.nnz,), torch.float64, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sparse(x, values, pattern)
        expected = dense(x, pattern.unpack(values))
    assert y.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(y, expected)


def test_mixed_with_float64_is_refused_as_the_dense_op_refuses_it(op):
    sparse, dense, pattern, shape = op
    for x_dtype, values_dtype in [(torch.float64, torch.float32), (torch.float32, torch.float64)]:
        x, values = random_tensor(shape, x_dtype), random_tensor((pattern.nnz,), values_dtype, seed=1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with pytest.raises(RuntimeError):
                dense(x, pattern.unpack(values))
            with pytest.raises(TypeError, match="must have one dtype"):
                sparse(x, values, pattern)


def test_float16_is_refused_in_words(op):
    sparse, _, pattern, shape = op
    x, values = random_tensor(shape, torch.float32), random_tensor((pattern.nnz,), torch.float32, seed=1)
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(BackendError, match="float16"):
        sparse(x, values, pattern)
