"""The registered ops: opcheck, fake tensors, torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsekern.formats import Pattern
from sparsekern.ops import (
    conv2d,
    conv2d_grad_input,
    conv2d_grad_values,
    linear,
    linear_grad_input,
    linear_grad_values,
    pack,
    transfer,
    unpack,
)

MATRIX = Pattern.random((6, 9), 0.5, generator=torch.Generator().manual_seed(0))
OTHER = Pattern.random((6, 9), 0.5, generator=torch.Generator().manual_seed(1))
KERNEL = Pattern.random((6, 2, 3, 2), 0.5, generator=torch.Generator().manual_seed(0))
GEOMETRY = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 2}
FLAT = (1, 2, 1, 0, 2, 1, 2)


def random_tensor(*shape, seed=0, dtype=torch.float32):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return tensor.requires_grad_()


X, VALUES, BIAS, GRAD_Y = (
    random_tensor(4, 9),
    random_tensor(MATRIX.nnz),
    random_tensor(6),
    random_tensor(4, 6),
)
IMAGES, TAPS, PIXELS = random_tensor(2, 4, 5, 6), random_tensor(KERNEL.nnz), random_tensor(2, 6, 3, 3)
WEIGHT, KERNELS = random_tensor(6, 9), random_tensor(6, 2, 3, 2)
M, K, S, T = MATRIX.data, KERNEL.data, MATRIX.shape, KERNEL.shape

# Op and arguments of its schema.
REGISTERED = {
    "linear": ("linear", (X, VALUES, BIAS, M, S, "")),
    "linear, masked": ("linear", (X, WEIGHT, None, M, S, "cpp")),
    "linear of a vector": ("linear", (random_tensor(9), VALUES, BIAS, M, S, "")),
    "linear of no rows": ("linear", (random_tensor(0, 9), VALUES, BIAS, M, S, "")),
    "linear of a transposed input": ("linear", (random_tensor(9, 4).t(), VALUES, BIAS, M, S, "")),
    "linear, reference": ("linear", (X, VALUES, BIAS, M, S, "reference")),
    "linear_grad_input": ("linear_grad_input", (GRAD_Y, VALUES, M, S, "")),
    "linear_grad_values": ("linear_grad_values", (GRAD_Y, X, M, S, (MATRIX.nnz,), "")),
    "linear_grad_values, masked": ("linear_grad_values", (GRAD_Y, X, M, S, S, "")),
    "conv2d": ("conv2d", (IMAGES, TAPS, BIAS, K, T, FLAT, "")),
    "conv2d, masked": ("conv2d", (IMAGES, KERNELS, None, K, T, FLAT, "")),
    "conv2d of channels_last": (
        "conv2d",
        (IMAGES.contiguous(memory_format=torch.channels_last), TAPS, BIAS, K, T, FLAT, ""),
    ),
    "conv2d_grad_input": ("conv2d_grad_input", (PIXELS, TAPS, K, T, IMAGES.shape, FLAT, "")),
    "conv2d_grad_values": ("conv2d_grad_values", (PIXELS, IMAGES, K, T, (KERNEL.nnz,), FLAT, "")),
    "conv2d_grad_values, masked": ("conv2d_grad_values", (PIXELS, IMAGES, K, T, T, FLAT, "")),
    "pack": ("pack", (WEIGHT, M, MATRIX.nnz, "")),
    "unpack": ("unpack", (VALUES, M, S, "")),
    "transfer": ("transfer", (VALUES, M, OTHER.data, OTHER.nnz, "")),
}


def test_every_registered_op_is_checked_here():
    names = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("sparsekern::")
    }
    # Those without a gradient are checked with their other tests.
    plain = {"transfer_all", "update_topology", "grow_candidates", "grow_candidates_conv2d"}
    # Those on 2:4 weights are in test_two_four*.py.
    two_four = {name for name in names if "two_four" in name}
    assert names - two_four == {op for op, _ in REGISTERED.values()} | plain


@pytest.mark.parametrize(("op", "arguments"), REGISTERED.values(), ids=REGISTERED.keys())
def test_opcheck(op, arguments):
    results = torch.library.opcheck(getattr(torch.ops.sparsekern, op).default, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("op", "arguments"), REGISTERED.values(), ids=REGISTERED.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_fake_tensors_know_shape_dtype_and_strides(op, arguments, dtype):
    def floats(argument):
        is_float = isinstance(argument, torch.Tensor) and argument.is_floating_point()
        return argument.detach().to(dtype) if is_float else argument

    arguments = [floats(argument) for argument in arguments]
    function = getattr(torch.ops.sparsekern, op)
    real = function(*arguments)
    with FakeTensorMode() as mode:
        fake = function(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    for attribute in ("shape", "dtype", "device"):
        assert getattr(fake, attribute) == getattr(real, attribute)
    assert fake.stride() == real.stride()


# Functions of the public ops and their tensors, the batch in the first.
COMPILED = {
    "linear": (lambda x, v, b: linear(x, v, MATRIX, b).tanh(), (X, VALUES, BIAS)),
    "linear, masked": (lambda x, w: linear(x, w, MATRIX).tanh(), (X, WEIGHT)),
    "linear_grad_input": (lambda g, v: linear_grad_input(g, v, MATRIX).tanh(), (GRAD_Y, VALUES)),
    "linear_grad_values": (lambda g, x: linear_grad_values(g, x, MATRIX).tanh(), (GRAD_Y, X)),
    "conv2d": (lambda x, v, b: conv2d(x, v, KERNEL, b, **GEOMETRY).tanh(), (IMAGES, TAPS, BIAS)),
    "conv2d, masked": (lambda x, w: conv2d(x, w, KERNEL, **GEOMETRY).tanh(), (IMAGES, KERNELS)),
    "conv2d_grad_input": (
        lambda g, v: conv2d_grad_input(g, v, KERNEL, (g.shape[0], 4, 5, 6), **GEOMETRY).tanh(),
        (PIXELS, TAPS),
    ),
    "conv2d_grad_values": (
        lambda g, x: conv2d_grad_values(g, x, KERNEL, **GEOMETRY).tanh(),
        (PIXELS, IMAGES),
    ),
    "values": (lambda w: unpack(transfer(pack(w, MATRIX), MATRIX, OTHER), OTHER).tanh(), (WEIGHT,)),
}


def assert_equal_to_eager(compiled, function, tensors):
    y, expected = compiled(*tensors), function(*tensors)
    torch.testing.assert_close(y, expected)
    grads = torch.autograd.grad(y.square().sum(), tensors)
    for mine, theirs in zip(grads, torch.autograd.grad(expected.square().sum(), tensors)):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("function", "tensors"), COMPILED.values(), ids=COMPILED.keys())
def test_compiles_as_one_graph(function, tensors):
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_equal_to_eager(compiled, function, tensors)


@pytest.mark.parametrize("name", ["linear", "linear, masked", "conv2d", "conv2d, masked"])
def test_one_graph_serves_every_batch(name):
    torch.compiler.reset()
    function, (x, *others) = COMPILED[name]
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    # The first batch equals no other dimension: equal ones would be taken for the same.
    for batch in (8, 2, 17):
        inputs = (random_tensor(batch, *x.shape[1:], seed=batch), *others)
        with torch.compiler.set_stance("default" if batch == 8 else "fail_on_recompile"):
            assert_equal_to_eager(compiled, function, inputs)


@pytest.mark.slow
def test_inductor():
    torch.compiler.reset()

    def function(x, values, bias, head):
        features = conv2d(x, values, KERNEL, bias, **GEOMETRY).relu().mean((2, 3))
        return linear(torch.cat([features, features[:, :3]], 1), head, MATRIX).tanh()

    tensors = (IMAGES, TAPS, BIAS, VALUES)
    assert_equal_to_eager(torch.compile(function, fullgraph=True), function, tensors)


def test_autocast_inside_a_compiled_function():
    torch.compiler.reset()

    def function(x, values, bias):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear(x, values, MATRIX, bias)

    y = torch.compile(function, fullgraph=True, backend="aot_eager")(X, VALUES, BIAS)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, function(X, VALUES, BIAS))


def test_exports_with_a_dynamic_batch():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.values = torch.nn.Parameter(VALUES.detach())

        def forward(self, x):
            return linear(x, self.values, MATRIX)

    module = Module()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (X.detach(),), dynamic_shapes=({0: batch},))
    x = torch.randn(11, 9)
    assert torch.equal(program.module()(x), module(x))
    assert any("sparsekern.linear" in str(node.target) for node in program.graph.nodes)
