"""conv2d and its gradients in Triton, interpreted, against dense PyTorch in float64."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

pytest.importorskip("triton", reason="triton is not installed")

import sparsekern as sk
from sparsekern.geometry import conv2d_geometry, conv2d_output_size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}
OPS = ("conv2d", "conv2d_grad_input", "conv2d_grad_values")


@dataclass(frozen=True)
class Case:
    """A convolution: size of x, output channels, kernel and geometry, and the tile size of its weight."""

    size: tuple[int, int, int, int]
    outputs: int
    kernel: tuple[int, int]
    tile: int
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.outputs, self.size[1] // self.groups, *self.kernel)

    @property
    def options(self) -> dict:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def output_size(self) -> tuple[int, ...]:
        return conv2d_output_size(self.size, self.shape, conv2d_geometry(**self.options))


# Aligned: the channels of a tap are whole tiles. Straddling: tiles hold the channels of several taps.
CASES = {
    "pointwise-aligned": Case((2, 64, 3, 4), 20, (1, 1), 16),
    "pointwise-stride-2": Case((1, 8, 5, 5), 9, (1, 1), 8, stride=2),
    "3x3-aligned": Case((2, 8, 4, 4), 10, (3, 3), 8, padding=1),
    "3x3-stride-2-straddling": Case((1, 20, 6, 5), 12, (3, 3), 32, stride=2, padding=1),
    "5x5-of-3-channels": Case((2, 3, 6, 7), 6, (5, 5), 8, stride=(2, 1), padding=2),
    "5x5-of-1-channel": Case((3, 1, 6, 6), 6, (5, 5), 8, padding=2),
    "3x2-dilated": Case((1, 64, 6, 5), 70, (3, 2), 64, padding=1, dilation=2),
    "taps-of-one-class-alone": Case((1, 8, 7, 6), 8, (3, 3), 16, stride=2, padding=2, dilation=2),
    "stride-3-dilation-2": Case((1, 8, 9, 8), 8, (3, 3), 8, stride=3, padding=1, dilation=2),
    "70-channels-straddling": Case((2, 70, 4, 3), 66, (1, 2), 64),
    "octets-in-larger-tiles": Case((1, 24, 4, 4), 40, (3, 1), 64, padding=(1, 0)),
    "2-groups-straddling": Case((1, 40, 4, 5), 24, (1, 3), 16, padding=(0, 1), groups=2),
    "2-groups-aligned": Case((1, 32, 4, 4), 64, (2, 1), 16, padding=1, groups=2),
    "depthwise": Case((2, 6, 4, 5), 6, (3, 3), 8, padding=1, groups=6),
    "depthwise-3-each-stride-2": Case((1, 3, 5, 4), 9, (3, 2), 8, stride=2, padding=1, groups=3),
}


class Problem:
    """A convolution with random tensors, and what dense PyTorch makes of it in some dtype."""

    def __init__(
        self,
        case: Case,
        pattern: sk.Pattern,
        dtype: torch.dtype = torch.float32,
        storage: str = "compact",
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        generator = torch.Generator().manual_seed(0)

        def random(*shape):
            return torch.randn(shape, generator=generator).to(dtype)

        self.case, self.pattern, self.masked = case, pattern, storage == "masked"
        self.x = random(*case.size).to(memory_format=memory_format)
        self.grad_y = random(*case.output_size).to(memory_format=memory_format)
        self.bias = random(case.outputs)
        self.weight = random(*case.shape) if self.masked else random(pattern.nnz)
        self.dense = pattern.unpack(pattern.pack(self.weight) if self.masked else self.weight)

    def expected(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        x, grad_y, bias, dense = (t.to(dtype) for t in (self.x, self.grad_y, self.bias, self.dense))
        options = self.case.options
        grad = self.pattern.pack(conv2d_weight(x, self.case.shape, grad_y, **options))
        return {
            "conv2d": F.conv2d(x, dense, bias, **options),
            "conv2d_grad_input": conv2d_input(self.case.size, dense, grad_y, **options),
            "conv2d_grad_values": self.pattern.unpack(grad) if self.masked else grad,
        }

    def found(self, interpreter, ops=OPS) -> dict[str, torch.Tensor]:
        calls = {
            "conv2d": ((self.x, self.weight, self.pattern, self.bias), {}),
            "conv2d_grad_input": ((self.grad_y, self.weight, self.pattern, self.case.size), {}),
            "conv2d_grad_values": ((self.grad_y, self.x, self.pattern), {"dense": self.masked}),
        }
        results = {}
        for name in ops:
            arguments, options = calls[name]
            options = {**options, **self.case.options, "backend": "triton"}
            results[name] = interpreter.submit(getattr(sk.ops, name), *arguments, **options).result()
        return results

    def check(self, interpreter, ops=OPS) -> None:
        """No result is farther from float64 than twice the dense op of the same dtype, or rounding."""
        exact, dense = self.expected(torch.float64), self.expected(self.x.dtype)
        for name, result in self.found(interpreter, ops).items():
            assert result.dtype == self.x.dtype, name
            assert result.shape == exact[name].shape, name
            assert torch.isfinite(result).all(), name
            if result.numel() == 0:
                continue
            error, allowed = ((t.double() - exact[name]).abs().max() for t in (result, dense[name]))
            rounding = torch.finfo(self.x.dtype).eps * exact[name].abs().max()
            assert error <= 2 * allowed + rounding, name


def pattern_of(case: Case, sparsity: float = 0.7) -> sk.Pattern:
    generator = torch.Generator().manual_seed(1)
    return sk.Pattern.from_mask(torch.rand(case.shape, generator=generator) >= sparsity, tile_size=case.tile)


# The two formats differ in strides alone, which do not depend on the geometry: each case takes turns.
IN_TURNS = [
    pytest.param(name, memory_format, marks=[pytest.mark.slow] if (i + j) % 2 else [])
    for i, name in enumerate(CASES)
    for j, memory_format in enumerate(FORMATS)
]


@pytest.mark.parametrize(("name", "memory_format"), IN_TURNS)
def test_geometries(interpreter, name, memory_format):
    case = CASES[name]
    Problem(case, pattern_of(case), memory_format=FORMATS[memory_format]).check(interpreter)


@pytest.mark.parametrize(
    ("name", "storage"),
    [
        ("3x3-aligned", "compact"),
        pytest.param("5x5-of-3-channels", "masked", marks=pytest.mark.slow),
    ],
    ids=["aligned", "masked"],
)
def test_masks_of_every_kind(interpreter, mask_of, name, storage):
    case = CASES[name]
    pattern = sk.Pattern.from_mask(mask_of(case.shape), tile_size=case.tile)
    Problem(case, pattern, storage=storage, memory_format=torch.channels_last).check(interpreter)


@pytest.mark.parametrize(
    ("name", "memory_format"),
    [
        ("2-groups-straddling", "nchw"),
        ("3x2-dilated", "channels-last"),
        ("depthwise-3-each-stride-2", "nchw"),
    ],
)
def test_dense_weights(interpreter, name, memory_format):
    case = CASES[name]
    problem = Problem(case, pattern_of(case), storage="masked", memory_format=FORMATS[memory_format])
    problem.check(interpreter)


@pytest.mark.parametrize(
    "name", ["2-groups-aligned", "2-groups-straddling", "3x3-stride-2-straddling", "depthwise"]
)
def test_grids_with_few_tiles(interpreter, name):
    """Tiles that are not stored, so that each column of them, and each group, has other rows."""
    case = CASES[name]
    pattern = pattern_of(case, 0.99)
    assert 0 < pattern.num_tiles
    Problem(case, pattern).check(interpreter)


@pytest.mark.parametrize(
    ("channels", "storage", "memory_format"),
    [
        (64, "compact", "nchw"),
        (64, "masked", "channels-last"),
        (40, "compact", "channels-last"),
        (40, "masked", "nchw"),
    ],
)
def test_block_patterns(interpreter, channels, storage, memory_format):
    case = Case((1, channels, 4, 3), 72, (1, 2), 16, padding=(0, 1))
    generator = torch.Generator().manual_seed(0)
    pattern = sk.Pattern.random(case.shape, 0.5, block_size=32, generator=generator)
    Problem(case, pattern, storage=storage, memory_format=FORMATS[memory_format]).check(interpreter)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(interpreter, dtype, memory_format):
    case = Case((1, 32, 6, 7), 17, (1, 3), 32)
    problem = Problem(case, pattern_of(case), DTYPES[dtype], memory_format=FORMATS[memory_format])
    problem.check(interpreter)


def test_no_images(interpreter):
    case = Case((0, 8, 5, 5), 9, (3, 3), 8)
    Problem(case, pattern_of(case)).check(interpreter)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_results_have_the_memory_format_of_the_input(interpreter, memory_format):
    case = CASES["3x3-aligned"]
    problem = Problem(case, pattern_of(case), memory_format=FORMATS[memory_format])
    found = problem.found(interpreter, OPS[:2])
    assert all(result.is_contiguous(memory_format=FORMATS[memory_format]) for result in found.values())


def test_any_strides(interpreter):
    case = CASES["3x3-aligned"]
    problem = Problem(case, pattern_of(case))
    problem.x = problem.x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    problem.grad_y = problem.grad_y[:1, :1, :1, :1].expand(problem.grad_y.shape)
    problem.check(interpreter)


@contextlib.contextmanager
def wide_offsets(interpreter):
    """All tensors are taken for ones of more than 2^31 elements."""
    modules = ", ".join(OPS)
    lines = "; ".join(f"{name}.is_wide = {{}}" for name in OPS)
    patch = f"from sparsekern.kernels import {modules}, pixels; {lines}"
    interpreter.submit(exec, patch.format(*["lambda *tensors: True"] * 3)).result()
    yield
    interpreter.submit(exec, patch.format(*["pixels.is_wide"] * 3)).result()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["3x3-aligned", "3x3-stride-2-straddling"])
def test_offsets_of_64_bits(interpreter, name, memory_format):
    case = CASES[name]
    with wide_offsets(interpreter):
        Problem(case, pattern_of(case), memory_format=FORMATS[memory_format]).check(interpreter)


def test_which_tensors_take_offsets_of_64_bits():
    from sparsekern.kernels.pixels import is_wide

    column = torch.empty(1).as_strided((1,), (1,)).expand(2**31, 1)
    assert not is_wide(column)
    last = torch.empty(1, device="meta").as_strided((2, 2**31), (2**31 - 1, 0))
    assert not is_wide(last)
    assert is_wide(last, torch.empty(2**31 + 1, device="meta"))
    assert not is_wide(torch.empty(0, 2**40, device="meta"))


def test_division_by_multiplication(interpreter):
    from sparsekern.kernels.pixels import Divisor

    numbers = torch.tensor([0, 1, 2, 5, 6, 7, 48, 49, 50, 2**16, 2**30 + 1, 2**31 - 2, 2**31 - 1])
    for value in (1, 2, 3, 7, 49, 56 * 56, 65537, 2**30, 2**31 - 1):
        divisor = Divisor.of(value)
        high = (numbers * (divisor.multiplier % 2**32)) >> 32
        assert torch.equal((high + numbers) >> divisor.shift, numbers // value)


def test_too_large_an_image_is_refused():
    from sparsekern.kernels.pixels import plane_divisor

    with pytest.raises(ValueError, match="an image must have at most 2147482624 pixels, got 65536 x 65536"):
        plane_divisor(65536, 65536)


def test_nan_of_other_taps_channels_and_groups_stays_outside(interpreter):
    """Tiles of 8 are computed in blocks of 16: what lies beside them must not come in as 0 * NaN."""
    case = Case((1, 24, 3, 3), 16, (1, 1), 8, groups=1)
    mask = torch.zeros(case.shape, dtype=torch.bool)
    mask[:8, :8] = True
    problem = Problem(case, sk.Pattern.from_mask(mask, tile_size=8))
    problem.x[:, 8:] = float("nan")
    problem.grad_y[:, 8:] = float("nan")
    found = problem.found(interpreter)
    weight, grad_y, x = problem.dense.double(), problem.grad_y.double(), problem.x.double()
    y = F.conv2d(x[:, :8], weight[:, :8], problem.bias.double())
    grad_x = conv2d_input((1, 8, 3, 3), weight[:8, :8], grad_y[:, :8])
    grad = conv2d_weight(x[:, :8], (8, 8, 1, 1), grad_y[:, :8])
    torch.testing.assert_close(found["conv2d"].double(), y, rtol=1e-5, atol=1e-5)
    assert torch.equal(found["conv2d_grad_input"][:, 8:], torch.zeros(1, 16, 3, 3))
    torch.testing.assert_close(found["conv2d_grad_input"][:, :8].double(), grad_x, rtol=1e-5, atol=1e-5)
    values = problem.pattern.pack(F.pad(grad, (0, 0, 0, 0, 0, 16, 0, 8)))
    torch.testing.assert_close(found["conv2d_grad_values"].double(), values, rtol=1e-5, atol=1e-5)


def test_nan_of_another_group_stays_outside(interpreter):
    case = CASES["depthwise-3-each-stride-2"]
    problem = Problem(case, pattern_of(case, 0.0))
    problem.x[:, 1] = float("nan")
    problem.grad_y[:, 3:6] = float("nan")
    found = problem.found(interpreter)
    rows = torch.arange(case.outputs)
    assert torch.equal(found["conv2d"].isnan().any((0, 2, 3)), rows // 3 == 1)
    assert torch.equal(found["conv2d_grad_input"].isnan().any((0, 2, 3)), torch.arange(3) == 1)
    grad = problem.pattern.unpack(found["conv2d_grad_values"])
    assert torch.equal(grad.isnan().any((1, 2, 3)), rows // 3 == 1)


def test_the_same_bits_every_time(interpreter):
    """Sums that are cut into parts are added in order."""
    case = Case((1, 32, 3, 3), 16, (3, 3), 16, padding=1)
    problem = Problem(case, pattern_of(case))
    first, second = problem.found(interpreter), problem.found(interpreter)
    assert all(torch.equal(first[name], second[name]) for name in OPS)
