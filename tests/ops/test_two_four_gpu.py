"""How 2:4 products reach PyTorch's own kernels on a GPU, as far as that shows without one."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from sparsekern import semi_structured
from sparsekern.ops import pack_two_four, unpack_two_four
from sparsekern.ops.two_four_linear import _preferred


class TestWhoMultipliesOnAGpu:
    """Told by fake tensors: PyTorch's products for many samples of sizes that they take, else Triton."""

    @staticmethod
    def preferred(shape, samples, dtype=torch.bfloat16):
        rows, columns = shape
        with FakeTensorMode():
            x = torch.empty(samples, columns, dtype=dtype, device="cuda")
            return _preferred(x, torch.empty(rows, columns // 2, dtype=dtype, device="cuda"))

    @pytest.fixture(autouse=True)
    def any_gpu(self, monkeypatch):
        monkeypatch.setattr(semi_structured, "device_refusals", lambda layout, device: [])

    def test_many_samples(self):
        assert self.preferred((64, 128), 128) == "torch"
        assert self.preferred((64, 128), 4096, torch.float16) == "torch"

    def test_few_samples(self):
        assert self.preferred((64, 128), 127) == ""

    def test_sizes_and_dtypes_that_pytorch_refuses(self):
        assert self.preferred((60, 128), 4096) == ""
        assert self.preferred((64, 100), 4096) == ""
        assert self.preferred((64, 128), 4096, torch.float32) == ""

    def test_a_gpu_that_has_none(self, monkeypatch):
        monkeypatch.setattr(semi_structured, "device_refusals", lambda layout, device: ["too old"])
        assert self.preferred((64, 128), 4096) == ""


class TestArrangedWeights:
    """PyTorch's products as a backend, with the arithmetic done on this CPU."""

    @pytest.fixture(autouse=True)
    def on_this_cpu(self, monkeypatch):
        def multiply(matrix, values, bias, metadata, rows):
            dense = sparse_semi_structured_to_dense_cutlass(values, metadata)
            return F.linear(matrix, dense, bias)

        monkeypatch.setattr(semi_structured, "device_refusals", lambda layout, device: [])
        monkeypatch.setattr(semi_structured, "_cutlass_product", multiply)
        self.arranged = []
        arrange = semi_structured.arrange

        def count(*arguments):
            self.arranged.append(arguments)
            return arrange(*arguments)

        monkeypatch.setattr(semi_structured, "arrange", count)

    def weight(self, seed=3):
        return pack_two_four(
            torch.randn(32, 64, generator=torch.manual_seed(seed)).bfloat16(), transposable=False
        )

    def test_the_op(self):
        packed = self.weight()
        x, bias = torch.randn(130, 64).bfloat16(), torch.randn(32).bfloat16()
        y = semi_structured.two_four_linear(x, packed.values, bias, packed.metadata)
        assert torch.equal(y, F.linear(x, unpack_two_four(packed), bias))

    def test_a_weight_is_arranged_once(self):
        packed, x = self.weight(), torch.randn(130, 64).bfloat16()
        for _ in range(3):
            semi_structured.two_four_linear(x, packed.values, None, packed.metadata)
        assert len(self.arranged) == 1
        packed.values.mul_(2)
        y = semi_structured.two_four_linear(x, packed.values, None, packed.metadata)
        assert torch.equal(y, F.linear(x, unpack_two_four(packed)))
        other = packed.with_values(packed.values.flip(0))
        y = semi_structured.two_four_linear(x, other.values, None, other.metadata)
        assert torch.equal(y, F.linear(x, unpack_two_four(other)))
        # Metadata is the same, and only that is arranged for CUTLASS.
        assert len(self.arranged) == 1
        packed.metadata.copy_(self.weight(seed=4).metadata)
        y = semi_structured.two_four_linear(x, packed.values, None, packed.metadata)
        assert torch.equal(y, F.linear(x, unpack_two_four(packed)))
        assert len(self.arranged) == 2

    def test_what_is_arranged_goes_with_the_weight(self):
        before = len(semi_structured._arranged)
        packed = self.weight()
        semi_structured.two_four_linear(torch.randn(130, 64).bfloat16(), packed.values, None, packed.metadata)
        assert len(semi_structured._arranged) == before + 1
        self.arranged.clear()
        del packed
        gc.collect()
        assert len(semi_structured._arranged) == before

    def test_sizes_are_refused_with_the_nearest(self):
        packed = pack_two_four(torch.randn(20, 64).bfloat16())
        with pytest.raises(
            ValueError, match=r"out_features must be a multiple of 32 .*got 20; the nearest is 32"
        ):
            semi_structured.two_four_linear(
                torch.randn(130, 64).bfloat16(), packed.values, None, packed.metadata
            )
