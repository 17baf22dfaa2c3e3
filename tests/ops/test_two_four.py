"""The public ops on 2:4 matrices against dense PyTorch, on every instruction set, with poisoned outputs."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsekern import TwoFour
from sparsekern.ops import (
    gather_two_four,
    pack_two_four,
    two_four_linear,
    two_four_linear_dense,
    two_four_linear_grad_input,
    two_four_linear_grad_values,
    unpack_two_four,
)

SHAPES = [(1, 4), (5, 4), (4, 12), (36, 28), (10, 100), (130, 200)]
LEADING = [(), (0,), (1,), (2,), (7,), (16,), (33,), (130,), (2, 3)]
RESULTS = ["y", "grad_x", "grad_weight", "grad_bias"]


def inputs_of(shape, leading, dtype, seed=0):
    """x, weight, bias and grad_y."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    sizes = [(*leading, columns), (rows, columns), (rows,), (*leading, rows)]
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def can_transpose(shape):
    return shape[0] % 4 == 0


def dense_results(inputs, mask):
    x, weight, bias, grad_y = inputs
    leaves = [leaf.detach().requires_grad_() for leaf in (x, weight.masked_fill(~mask, 0), bias)]
    y = F.linear(*leaves)
    grad_x, grad_weight, grad_bias = torch.autograd.grad(y, leaves, grad_y)
    return [y.detach(), grad_x, grad_weight.masked_fill(~mask, 0), grad_bias]


def packed_results(inputs, packed):
    x, _, bias, grad_y = inputs
    leaves = [leaf.detach().requires_grad_() for leaf in (x, packed.values, bias)]
    y = two_four_linear(leaves[0], TwoFour(leaves[1], packed.metadata, packed.transposed), leaves[2])
    grad_x, grad_values, grad_bias = torch.autograd.grad(y, leaves, grad_y)
    return [y.detach(), grad_x, unpack_two_four(packed.with_values(grad_values)), grad_bias]


@pytest.mark.usefixtures("poisoned", "isa")
class TestProducts:
    @pytest.mark.parametrize("leading", LEADING, ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_values_and_gradients(self, shape, leading, dtype, assert_accurate):
        inputs = inputs_of(shape, leading, dtype)
        for transposable in (False, True)[: 1 + can_transpose(shape)]:
            packed = pack_two_four(inputs[1], transposable=transposable)
            mask = packed.to_mask()
            got = packed_results(inputs, packed)
            assert_accurate(got, inputs, lambda tensors, mask=mask: dense_results(tensors, mask), RESULTS)

    def test_inputs_of_any_strides(self, dtype, assert_accurate):
        x, weight, bias, grad_y = inputs_of((12, 20), (9,), dtype)
        packed = pack_two_four(weight, transposable=True)
        mask = packed.to_mask()
        wide = torch.full((9, 60), torch.nan, dtype=dtype)
        wide[:, 20:40] = x
        for strided in (wide[:, 20:40], x.T.contiguous().T, x.flip(0).flip(0)):
            inputs = [strided, weight, bias, grad_y]
            got = packed_results(inputs, packed)
            assert_accurate(got, inputs, lambda tensors: dense_results(tensors, mask), RESULTS)

    def test_any_number_of_threads(self, threads, dtype):
        inputs = inputs_of((68, 132), (50,), dtype)
        packed = pack_two_four(inputs[1], transposable=True)
        runs = []
        for count in (1, 2, 3):
            threads(count)
            runs.append(packed_results(inputs, packed))
        for other in runs[1:]:
            assert all(map(torch.equal, runs[0], other))


@pytest.mark.parametrize("transposable", [False, True], ids=["row", "transposable"])
class TestGradcheck:
    def test_packed_values(self, transposable):
        x, weight, bias, _ = inputs_of((8, 12), (3,), torch.float64)
        packed = pack_two_four(weight, transposable=transposable)

        def run(x, values, bias):
            return two_four_linear(x, TwoFour(values, packed.metadata, packed.transposed), bias)

        leaves = [leaf.requires_grad_() for leaf in (x, packed.values.clone(), bias)]
        assert torch.autograd.gradcheck(run, leaves)

    def test_second_derivative(self, transposable):
        x, weight, bias, _ = inputs_of((8, 12), (3,), torch.float64)
        packed = pack_two_four(weight, transposable=transposable)

        def run(x, values, bias):
            return two_four_linear(x, TwoFour(values, packed.metadata), bias).tanh()

        leaves = [leaf.requires_grad_() for leaf in (x, packed.values.clone(), bias)]
        assert torch.autograd.gradgradcheck(run, leaves)


def test_pack_gather_and_unpack_are_each_others_gradients():
    dense = torch.randn(8, 12, dtype=torch.float64, requires_grad=True)
    packed = pack_two_four(dense)
    assert not packed.values.requires_grad
    assert torch.autograd.gradgradcheck(lambda d: gather_two_four(d, packed).square(), dense)
    values = packed.values.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: unpack_two_four(packed.with_values(v)).square(), values)
    assert torch.equal(gather_two_four(dense, packed), packed.values)
    assert torch.equal(unpack_two_four(packed), dense.masked_fill(~packed.to_mask(), 0))


@pytest.mark.parametrize("transposable", [False, True], ids=["row", "transposable"])
@pytest.mark.parametrize(
    "how",
    [{}, {"decay": 0.3}, {"gradient": "masked"}],
    ids=["straight_through", "sr_ste", "masked"],
)
class TestDenseGradient:
    """Against autograd of the dense expression, written with detach."""

    @staticmethod
    def expected(inputs, mask, gradient="straight_through", decay=0.0):
        x, weight, bias, grad_y = inputs
        x, weight, bias = (leaf.detach().requires_grad_() for leaf in (x, weight, bias))
        used = weight * mask
        if gradient == "straight_through":
            used = weight + (used - weight).detach()
        y = F.linear(x, used, bias)
        penalty = 0.5 * decay * (weight * ~mask).square().sum()
        return [y.detach(), *torch.autograd.grad((y * grad_y).sum() + penalty, (x, weight, bias))]

    def test_first_derivative(self, transposable, how):
        inputs = inputs_of((20, 28), (5, 3), torch.float64)
        packed = pack_two_four(inputs[1], transposable=transposable)
        x, weight, bias = (leaf.detach().requires_grad_() for leaf in inputs[:3])
        y = two_four_linear_dense(x, weight, packed, bias, **how)
        got = [y.detach(), *torch.autograd.grad(y, (x, weight, bias), inputs[3])]
        expected = self.expected(inputs, packed.to_mask(), **how)
        for one, other, name in zip(got, expected, RESULTS, strict=True):
            torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")

    def test_second_derivative(self, transposable, how):
        """The norm of the gradient, as in a gradient penalty."""
        if "decay" in how:
            pytest.skip("the decay's own gradient is not that of a penalty on the sum")
        inputs = inputs_of((8, 12), (5,), torch.float64)
        packed = pack_two_four(inputs[1], transposable=transposable)
        mask = packed.to_mask()

        def penalty(run):
            x, weight = (leaf.detach().requires_grad_() for leaf in inputs[:2])
            loss = (run(x, weight).tanh() * inputs[3]).sum()
            norm = sum(g.square().sum() for g in torch.autograd.grad(loss, (x, weight), create_graph=True))
            return torch.autograd.grad(norm, (x, weight))

        def dense(x, weight):
            if how:
                return F.linear(x, weight * mask)
            return F.linear(x, weight + (weight * mask - weight).detach())

        got = penalty(lambda x, weight: two_four_linear_dense(x, weight, packed, **how))
        for one, other in zip(got, penalty(dense), strict=True):
            torch.testing.assert_close(one, other)


WEIGHT = torch.randn(8, 12, generator=torch.manual_seed(0))
PACKED = pack_two_four(WEIGHT, transposable=True, backend="reference")
V, M = PACKED.values.clone().requires_grad_(), PACKED.metadata
T = (PACKED.transposed.values, PACKED.transposed.metadata)
X = torch.randn(5, 12, generator=torch.manual_seed(1), requires_grad=True)
GRAD_Y, BIAS = torch.randn(5, 8, requires_grad=True), torch.randn(8, requires_grad=True)
DENSE = WEIGHT.clone().requires_grad_()
REGISTERED = {
    "pack_two_four": ([WEIGHT], False, False, ""),
    "pack_two_four, both": ([WEIGHT], True, True, ""),
    "unpack_two_four": (V, M, ""),
    "gather_two_four": (DENSE, M, ""),
    "two_four_linear": (X, V, BIAS, M, None, None, ""),
    "two_four_linear, transposed": (X, V, None, M, *T, ""),
    "two_four_linear_grad_input": (GRAD_Y, V, M, ""),
    "two_four_linear_grad_values": (GRAD_Y, X, M, ""),
    "two_four_linear_dense": (X, DENSE, BIAS, PACKED.values, M, *T, "straight_through", 0.1, ""),
    "two_four_linear_dense, masked": (X, DENSE, BIAS, PACKED.values, M, None, None, "masked", 0.0, ""),
}


@pytest.mark.parametrize("name", REGISTERED)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.sparsekern, name.partition(",")[0]).default, REGISTERED[name])


def test_metadata_of_another_dtype_is_refused_by_the_registered_op():
    with pytest.raises(TypeError, match=r"metadata must have dtype torch\.uint8, got torch\.int32"):
        torch.ops.sparsekern.unpack_two_four(V, M.int(), "")


def test_fake_tensors():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        packed = pack_two_four(mode.from_tensor(WEIGHT), transposable=True)
        y = two_four_linear(mode.from_tensor(X.detach()), packed)
    assert packed.transposed.shape == (12, 8)
    assert y.shape == (5, 8)


def test_compiled_training_step():
    def step(x, weight, bias):
        packed = pack_two_four(weight, transposable=True)
        return two_four_linear_dense(x, weight, packed, bias, decay=0.1).square().sum()

    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        leaves = [leaf.detach().requires_grad_() for leaf in (X, DENSE, BIAS)]
        run(*leaves).backward()
        results.append([leaf.grad for leaf in leaves])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_autocast():
    packed = pack_two_four(WEIGHT, transposable=True)
    leaves = [leaf.detach().requires_grad_() for leaf in (X, DENSE, BIAS)]
    with torch.autocast("cpu", torch.bfloat16):
        y = two_four_linear_dense(leaves[0], leaves[1], packed, leaves[2])
        expected = F.linear(X, unpack_two_four(packed), BIAS)
        assert two_four_linear(X, packed).dtype == torch.bfloat16
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    y.float().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)


REFUSED = {
    "columns": (
        lambda: pack_two_four(torch.ones(4, 10)),
        "a multiple of 4 columns, got 10; the nearest: 8 and 12",
    ),
    "few columns": (
        lambda: pack_two_four(torch.ones(4, 2)),
        "a multiple of 4 columns, got 2; the nearest: 4",
    ),
    "rows": (
        lambda: pack_two_four(torch.ones(6, 8), transposable=True),
        "a multiple of 4 rows for a mask that is 2:4 along both dimensions, got 6; the nearest: 4 and 8",
    ),
    "dimensions": (lambda: pack_two_four(torch.ones(4)), r"weight must have 2 dimensions, got shape \(4,\)"),
    "dtype": (
        lambda: pack_two_four(torch.ones(4, 4).int()),
        "weight must be a tensor of one of the dtypes float16",
    ),
    "transpose of a row mask": (
        lambda: pack_two_four(WEIGHT, transpose=True),
        "transpose must be False unless transposable is True",
    ),
    "sparse layout": (
        lambda: pack_two_four(WEIGHT.to_sparse()),
        "weight must be a tensor of layout torch.strided, got torch.sparse_coo",
    ),
    "nan": (
        lambda: pack_two_four(WEIGHT.index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(torch.nan))),
        "weight: expected finite values, got nan at row 3, column 5",
    ),
    "inf": (
        lambda: pack_two_four(WEIGHT.index_put((torch.tensor(7), torch.tensor(0)), torch.tensor(-torch.inf))),
        "weight: expected finite values, got -inf at row 7, column 0",
    ),
    "x": (lambda: two_four_linear(torch.ones(3, 8), PACKED), r"x must have shape \(\.\.\., 12\)"),
    "x dtype": (lambda: two_four_linear(X.double(), PACKED), "packed.values and x must have one dtype"),
    "bias": (lambda: two_four_linear(X, PACKED, torch.ones(12)), r"bias must have shape \(8,\)"),
    "packed": (
        lambda: two_four_linear(X, WEIGHT),
        "packed must be a sparsekern.TwoFour, got a torch.float32",
    ),
    "layout of hardware": (
        lambda: two_four_linear(X, TwoFour(PACKED.values, M, layout="cutlass")),
        "packed must have the layout 'rows', got 'cutlass'",
    ),
    "gradient": (
        lambda: two_four_linear_dense(X, DENSE, PACKED, gradient="all"),
        "gradient must be 'straight_through' or 'masked', got 'all'",
    ),
    "decay": (
        lambda: two_four_linear_dense(X, DENSE, PACKED, decay=-1),
        "decay must be a finite number of at least 0",
    ),
    "masked decay": (
        lambda: two_four_linear_dense(X, DENSE, PACKED, gradient="masked", decay=0.1),
        "decay must be 0 unless gradient is 'straight_through', got 0.1",
    ),
    "weight": (
        lambda: two_four_linear_dense(X, DENSE.T, PACKED),
        r"weight must have packed's shape \(8, 12\)",
    ),
    "grad_y": (lambda: two_four_linear_grad_input(X, PACKED), r"grad_y must have shape \(\.\.\., 8\)"),
    "samples": (
        lambda: two_four_linear_grad_values(GRAD_Y[:2], X, PACKED),
        "grad_y must match x but in its last",
    ),
    "dense": (lambda: gather_two_four(DENSE.T, PACKED), r"dense must be a tensor of shape \(8, 12\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError)) as refused:
        call()
    assert re.search(message, str(refused.value)), str(refused.value)


def test_a_transposed_view_is_packed_as_it_reads():
    weight = torch.randn(12, 8, generator=torch.manual_seed(4)).T
    packed = pack_two_four(weight)
    assert torch.equal(unpack_two_four(packed), unpack_two_four(pack_two_four(weight.contiguous())))
