"""Which backend runs an op, and what the others say."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from types import SimpleNamespace

import pytest
import torch

from sparsekern import backends, cpp, cuda, reference, triton
from sparsekern.backends import AUTOMATIC, BACKENDS, Backend, BackendError, select
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
    transfer_all,
    unpack,
    update_topology,
)

COMPUTED = [
    "linear",
    "linear_grad_input",
    "linear_grad_values",
    "conv2d",
    "conv2d_grad_input",
    "conv2d_grad_values",
    "grow_candidates",
    "grow_candidates_conv2d",
    "two_four_linear",
    "two_four_linear_grad_input",
    "two_four_linear_grad_values",
    "two_four_linear_int8",
]
COPIED = [
    "pack",
    "unpack",
    "transfer",
    "transfer_all",
    "update_topology",
    "pack_two_four",
    "gather_two_four",
    "unpack_two_four",
]
ON_CUDA = {"pack_two_four", "transfer", "transfer_all", "update_topology"}
ON_CPU = torch.zeros(1)


def choose(op, tensor, name=AUTOMATIC):
    return select(op, tensor.dtype, tensor.device, name)


def ops_of(module):
    """The public functions that a backend's module defines."""
    return {
        name
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__.startswith(module.__name__) and not name.startswith("_")
    }


@pytest.mark.parametrize("op", COMPUTED + COPIED)
def test_every_backend_has_every_op(op):
    assert choose(op, ON_CPU) is BACKENDS["cpp"].kernel(op)
    assert choose(op, ON_CPU, "cpp") is BACKENDS["cpp"].kernel(op)
    assert choose(op, ON_CPU, "reference") is BACKENDS["reference"].kernel(op)


def test_there_are_no_other_ops():
    assert ops_of(cpp) == ops_of(reference) == {*COMPUTED, *COPIED}
    assert ops_of(cuda) == {*ON_CUDA, "pack_two_four", "transpose_two_four", "is_built"}


@pytest.mark.parametrize("op", COMPUTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_cpu_dtypes(op, dtype):
    assert choose(op, ON_CPU.to(dtype)) is BACKENDS["cpp"].kernel(op)


@pytest.mark.parametrize("op", COMPUTED)
def test_float16_on_the_cpu_is_refused_in_words(op):
    with pytest.raises(BackendError) as refused:
        choose(op, ON_CPU.half())
    first, *reasons = str(refused.value).splitlines()
    assert first == f"sparsekern.{op}: no backend can run it on float16 tensors on cpu"
    assert "  cpp: it computes in float32, float64, bfloat16, and the inputs are float16" in reasons
    assert "  reference: it runs only when asked for, with backend='reference'" in reasons
    assert {reason.split(":")[0].strip() for reason in reasons} == set(BACKENDS)


@pytest.mark.parametrize("op", COPIED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn], ids=str)
def test_copies_take_every_dtype(op, dtype):
    assert choose(op, ON_CPU.to(dtype)) is BACKENDS["cpp"].kernel(op)


@pytest.mark.parametrize("op", COMPUTED + COPIED)
def test_another_device_is_refused_in_words(op):
    reason = "  cpp: its kernels run on the CPU, and the inputs are on meta"
    for name in (AUTOMATIC, "cpp"):
        with pytest.raises(BackendError) as refused:
            choose(op, ON_CPU.to("meta"), name)
        first, *reasons = str(refused.value).splitlines()
        assert first == f"sparsekern.{op}: no backend can run it on float32 tensors on meta"
        assert reason in reasons


@pytest.mark.parametrize("op", COMPUTED + COPIED)
def test_the_cuda_backend_refuses_tensors_on_the_cpu(op):
    with pytest.raises(BackendError) as refused:
        choose(op, ON_CPU, "cuda")
    first, *reasons = str(refused.value).splitlines()
    assert first == f"sparsekern.{op}: no backend can run it on float32 tensors on cpu"
    assert "  cuda: its kernels run on CUDA devices, and the inputs are on cpu" in reasons
    assert (f"  cuda: it has no kernel for {op}" in reasons) == (op not in ON_CUDA)
    assert len(reasons) == 1 + (op not in ON_CUDA) + (not cuda.is_built())


def test_float64_is_not_packed_on_a_gpu():
    with pytest.raises(BackendError, match="cuda: it packs float16, bfloat16, float32, int8, and the inputs"):
        select("pack_two_four", torch.float64, torch.device("cuda"), "cuda")


def test_all_objections_of_a_backend_are_listed():
    with pytest.raises(BackendError) as refused:
        choose("linear", torch.zeros(1, dtype=torch.float16, device="meta"), "cpp")
    assert str(refused.value).splitlines()[1:] == [
        "  cpp: its kernels run on the CPU, and the inputs are on meta",
        "  cpp: it computes in float32, float64, bfloat16, and the inputs are float16",
    ]


def test_an_unknown_name():
    message = f"backend must be one of {', '.join(BACKENDS)}, got 'cudnn'"
    with pytest.raises(ValueError, match=re.escape(message)):
        choose("linear", ON_CPU, "cudnn")


def test_the_first_without_an_objection_runs(monkeypatch):
    """In the order of the table, and the reference never by itself."""

    def backend(name, refusals):
        return Backend(name, lambda *inputs: refusals, SimpleNamespace(linear=name))

    def choose(op, tensor, name=AUTOMATIC):
        return select.__wrapped__(op, tensor.dtype, tensor.device, name)

    table = {
        "first": backend("first", ["it is busy"]),
        "second": backend("second", []),
        "third": backend("third", []),
        "reference": backend("reference", []),
    }
    monkeypatch.setattr(backends, "BACKENDS", table)
    assert choose("linear", ON_CPU) == "second"
    assert choose("linear", ON_CPU, "third") == "third"
    assert choose("linear", ON_CPU, "reference") == "reference"
    with pytest.raises(BackendError, match="first: it is busy"):
        choose("linear", ON_CPU, "first")
    monkeypatch.setattr(backends, "BACKENDS", {name: table[name] for name in ("first", "reference")})
    with pytest.raises(BackendError, match="first: it is busy\n  reference: it runs only when asked for"):
        choose("linear", ON_CPU)


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("3.5.1", "it needs Triton 3.6 or newer, as comes with PyTorch 2.11, and 3.5.1 is installed"),
        ("3.6.0", None),
        ("3.10.1+git1234", None),
    ],
)
def test_an_old_triton_is_refused_in_words(monkeypatch, version, reason):
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(importlib.metadata, "version", {"triton": version}.__getitem__)
    monkeypatch.setattr(triton, "unusable", triton.unusable.__wrapped__)
    assert triton.unusable() == reason
    with pytest.raises(BackendError) as refused:
        choose("linear", ON_CPU, "triton")
    assert (f"  triton: {reason}" in str(refused.value).splitlines()) == (reason is not None)


MATRIX = Pattern.random((6, 9), 0.5, generator=torch.Generator().manual_seed(0))
OTHER = Pattern.random((6, 9), 0.5, generator=torch.Generator().manual_seed(1))
KERNEL = Pattern.random((6, 2, 3, 2), 0.5, generator=torch.Generator().manual_seed(0))
GEOMETRY = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 2}


def random_tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, GRAD_Y, IMAGES, PIXELS = (random_tensor(*shape) for shape in ((4, 9), (4, 6), (2, 4, 5, 6), (2, 6, 3, 3)))
VALUES, TAPS, BIAS = random_tensor(MATRIX.nnz), random_tensor(KERNEL.nnz), random_tensor(6)
CALLS = {
    "linear": lambda cast, **how: linear(cast(X), cast(VALUES), MATRIX, cast(BIAS), **how),
    "linear, masked": lambda cast, **how: linear(cast(X), cast(random_tensor(6, 9)), MATRIX, **how),
    "linear_grad_input": lambda cast, **how: linear_grad_input(cast(GRAD_Y), cast(VALUES), MATRIX, **how),
    "linear_grad_values": lambda cast, **how: linear_grad_values(cast(GRAD_Y), cast(X), MATRIX, **how),
    "linear_grad_values, dense": lambda cast, **how: linear_grad_values(
        cast(GRAD_Y), cast(X), MATRIX, dense=True, **how
    ),
    "conv2d": lambda cast, **how: conv2d(cast(IMAGES), cast(TAPS), KERNEL, cast(BIAS), **GEOMETRY, **how),
    "conv2d_grad_input": lambda cast, **how: conv2d_grad_input(
        cast(PIXELS), cast(TAPS), KERNEL, IMAGES.shape, **GEOMETRY, **how
    ),
    "conv2d_grad_values": lambda cast, **how: conv2d_grad_values(
        cast(PIXELS), cast(IMAGES), KERNEL, **GEOMETRY, **how
    ),
    "pack": lambda cast, **how: pack(cast(random_tensor(6, 9)), MATRIX, **how),
    "unpack": lambda cast, **how: unpack(cast(VALUES), MATRIX, **how),
    "transfer": lambda cast, **how: transfer(cast(VALUES), MATRIX, OTHER, **how),
    "transfer_all": lambda cast, **how: transfer_all([cast(VALUES)], MATRIX, OTHER, **how)[0],
    "update_topology": lambda cast, **how: (
        update_topology([cast(VALUES)], [MATRIX], [cast(random_tensor(6, 9))], [9], **how)[0].data
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_backends_agree(call):
    expected = call(torch.Tensor.double, backend="reference")
    torch.testing.assert_close(call(torch.Tensor.double, backend="cpp"), expected)
    assert torch.equal(call(torch.Tensor.double), call(torch.Tensor.double, backend="cpp"))


@pytest.mark.parametrize("name", [name for name in CALLS if name not in COPIED])
def test_a_named_backend_never_falls_back(name):
    """The reference runs float16; the C++ kernels do not, and asking for them hands over to nobody."""
    call = CALLS[name]
    expected = call(torch.Tensor.double, backend="reference")
    torch.testing.assert_close(
        call(torch.Tensor.half, backend="reference").double(), expected, rtol=1e-2, atol=1e-2
    )
    for how in ({}, {"backend": "cpp"}):
        with pytest.raises(BackendError, match="it computes in float32, float64, bfloat16"):
            call(torch.Tensor.half, **how)


def test_gradients_stay_with_the_named_backend(monkeypatch):
    monkeypatch.setattr(operator, "select", select.__wrapped__)
    leaves = [X.clone().requires_grad_(), VALUES.clone().requires_grad_()]
    y = linear(*leaves, MATRIX, backend="reference")
    for op in ("linear_grad_input", "linear_grad_values"):
        monkeypatch.delattr(cpp, op)
    (grad,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
    grad.square().sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)
