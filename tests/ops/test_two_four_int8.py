"""The int8 product on 2:4 weights: exact integers, and how near it is to the float one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsekern import TwoFour
from sparsekern.ops import pack_two_four, quantize_two_four, two_four_linear_int8, unpack_two_four

SHAPES = [(1, 4), (5, 4), (36, 28), (10, 100), (130, 200), (3, 1032)]
LEADING = [(), (0,), (1,), (2,), (7,), (33,), (2, 3)]


def quantized(shape, seed=0):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return quantize_two_four(pack_two_four(weight))


def expected(x, packed, scale, bias, x_scale):
    """With Python's own exact integers in float64."""
    x = x.float()
    if x_scale is None:
        largest = x.abs().amax(-1, keepdim=True)
        step = torch.where(largest == 0, torch.ones_like(largest), largest / 127)
    else:
        step = x_scale
    q = (x / step).round().clamp(-127, 127).double()
    sums = F.linear(q, unpack_two_four(packed).double())
    return sums, step, (sums.float() * (step * scale) + (0 if bias is None else bias.float()))


@pytest.mark.usefixtures("poisoned", "isa")
class TestProduct:
    @pytest.mark.parametrize("x_scale", [None, 0.03], ids=["dynamic", "static"])
    @pytest.mark.parametrize("leading", LEADING, ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_integers_are_exact(self, shape, leading, x_scale, dtype):
        packed, scale = quantized(shape)
        x = torch.randn(*leading, shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
        if x.numel() and len(leading) == 1:
            x[0] = 0  # a sample without a scale of its own
        step = None if x_scale is None else torch.tensor(x_scale)
        # Scales of 1 show the sums themselves.
        ones = torch.ones_like(scale)
        sums, sample_step, _ = expected(x, packed, ones, None, step)
        y = two_four_linear_int8(x, packed, ones, x_scale=step)
        assert y.dtype == dtype
        torch.testing.assert_close(y, (sums.float() * sample_step).to(dtype), rtol=1e-6, atol=0)
        bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(2)).to(dtype)
        _, _, result = expected(x, packed, scale, bias, step)
        y = two_four_linear_int8(x, packed, scale, bias, x_scale=step)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(y, result.to(dtype), rtol=tolerance, atol=tolerance)

    def test_extremes(self):
        """Every product 127 * 127, of one sign: the largest sums there are."""
        packed = pack_two_four(torch.ones(3, 4096))
        packed, scale = quantize_two_four(packed)
        x = torch.ones(2, 4096)
        x[1] = -1
        y = two_four_linear_int8(x, packed, scale)
        torch.testing.assert_close(y, torch.tensor([[2048.0] * 3, [-2048.0] * 3]))

    def test_ties_round_to_even(self):
        packed = TwoFour(
            torch.tensor([[1, 0]], dtype=torch.int8), torch.tensor([[0b0100]], dtype=torch.uint8)
        )
        x = torch.tensor([[0.5], [1.5], [2.5], [-0.5], [-1.5], [126.5], [200.0], [-200.0]])
        y = two_four_linear_int8(F.pad(x, (0, 3)), packed, torch.ones(1), x_scale=torch.tensor(1.0))
        assert y.flatten().tolist() == [0, 2, 2, 0, -2, 126, 127, -127]

    def test_any_number_of_threads(self, threads):
        packed, scale = quantized((130, 264))
        x = torch.randn(9, 264)
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(two_four_linear_int8(x, packed, scale))
        assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_quantization(dtype):
    weight = torch.randn(9, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[4] = 0
    weight[5] *= 1e-3
    packed = pack_two_four(weight, transposable=False)
    small, scale = quantize_two_four(packed)
    assert small.values.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert scale[4] == 1
    assert small.values[4].eq(0).all()
    assert small.values.abs().amax(1)[[0, 1, 2, 3, 5, 6, 7, 8]].eq(127).all()
    # At most half a step from the weight.
    back = small.values.double() * scale.double()[:, None]
    assert ((back - packed.values.double()).abs() <= 0.5001 * scale.double()[:, None]).all()
    assert torch.equal(small.to_mask(), packed.to_mask())


def test_near_the_float_product():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    packed = pack_two_four(weight)
    x = torch.randn(32, 256, generator=torch.Generator().manual_seed(1))
    exact = F.linear(x, unpack_two_four(packed))
    y = two_four_linear_int8(x, *quantize_two_four(packed))
    assert ((y - exact).norm() / exact.norm()) < 0.015


PACKED, SCALE = (
    TwoFour(torch.ones(3, 4, dtype=torch.int8), torch.full((3, 1), 0x44, dtype=torch.uint8)),
    torch.ones(3),
)
X = torch.ones(2, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: two_four_linear_int8(X.double(), PACKED, SCALE),
            "x must be float32 or bfloat16, got torch.float64",
        ),
        (
            lambda: two_four_linear_int8(X[:, :4], PACKED, SCALE),
            r"x must have shape \(\.\.\., 8\), got \(2, 4\)",
        ),
        (
            lambda: two_four_linear_int8(X, PACKED.with_values(torch.ones(3, 4)), SCALE),
            "must have int8 values",
        ),
        (
            lambda: two_four_linear_int8(X, PACKED, SCALE[:2]),
            r"scale must be a torch.float32 tensor of shape \(3,\)",
        ),
        (lambda: two_four_linear_int8(X, PACKED, SCALE.double()), "scale must be a torch.float32 tensor"),
        (
            lambda: two_four_linear_int8(X, PACKED, SCALE, SCALE.double()),
            "bias must be a torch.float32 tensor",
        ),
        (lambda: two_four_linear_int8(X, PACKED, SCALE, x_scale=SCALE), r"x_scale must be .* of shape \(\)"),
        (lambda: quantize_two_four(PACKED), "packed must have floating-point values, got torch.int8"),
        (
            lambda: quantize_two_four(PACKED.with_values(torch.full((3, 4), 1e-40))),
            "largest magnitude / 127 is a normal float32, got 1e-40 in row 0",
        ),
        (
            lambda: quantize_two_four(PACKED.with_values(torch.full((3, 4), 1e300, dtype=torch.float64))),
            r"a normal float32, got 1e\+300 in row 0",
        ),
        (
            lambda: quantize_two_four(PACKED.with_values(torch.full((3, 4), torch.inf))),
            "packed must have finite values, got inf in row 0",
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_there_is_no_gradient():
    y = two_four_linear_int8(X.clone().requires_grad_(), PACKED, SCALE, backend="reference")
    with pytest.raises(NotImplementedError, match="has no gradient"):
        y.sum().backward()


def test_opcheck():
    for x_scale in (None, torch.tensor(0.1)):
        arguments = (X, PACKED.values, SCALE, PACKED.metadata, SCALE, x_scale, "")
        torch.library.opcheck(torch.ops.sparsekern.two_four_linear_int8.default, arguments)
