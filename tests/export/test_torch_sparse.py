"""Sparse weights as the sparse tensors of PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern import export
from tests.export.networks import network


@pytest.mark.filterwarnings("ignore:Sparse .SR tensor support is in beta state")
class TestTorchSparse:
    def test_csr(self):
        layer = network()[3]
        with torch.no_grad():
            layer.values[::3] = 0  # stored, though it is 0
        csr = export.to_torch_sparse(layer)
        assert csr.layout == torch.sparse_csr
        assert csr.values().numel() == layer.pattern.nnz
        assert torch.equal(csr.to_dense(), layer.to_dense())
        x = torch.randn(7, 32)
        torch.testing.assert_close((csr @ x.T).T + layer.bias, layer(x))

    @pytest.mark.parametrize("block", [16, 32])
    def test_bsr(self, block):
        model = nn.Sequential(nn.Linear(128, 64))
        sk.sparsify_(model, sparsity=0.75, pattern="block", block_size=32, generator=torch.manual_seed(0))
        bsr = export.to_torch_sparse(model[0], "bsr", block_size=block)
        assert bsr.layout == torch.sparse_bsr
        assert bsr.values().numel() == model[0].pattern.nnz
        assert torch.equal(bsr.to_dense(), model[0].to_dense())

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda m: export.to_torch_sparse(m[0]), TypeError, "a sparse linear layer, got SparseConv2d"),
            (lambda m: export.to_torch_sparse(m[5]), TypeError, "a sparse linear layer, got Linear"),
            (
                lambda m: export.to_torch_sparse(m[3], "coo"),
                ValueError,
                "layout must be 'csr' or 'bsr', got 'coo'",
            ),
            (lambda m: export.to_torch_sparse(m[3], block_size=4), ValueError, "block_size must be left out"),
            (
                lambda m: export.to_torch_sparse(m[3], "bsr", block_size=5),
                ValueError,
                r"a divisor of both dimensions, \(16, 32\), got 5",
            ),
        ],
    )
    def test_refused(self, call, error, message):
        with pytest.raises(error, match=message):
            call(network())


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
class TestSemiStructured:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8], ids=str)
    def test_cutlass(self, dtype):
        """Its own unpacking gives the weight back."""
        weight = torch.randint(-9, 9, (32, 128), generator=torch.manual_seed(0)).to(dtype)
        packed = sk.ops.pack_two_four(weight)
        tensor = export.to_semi_structured(packed)
        assert isinstance(tensor, torch.sparse.SparseSemiStructuredTensorCUTLASS)
        assert tensor.shape == (32, 128)
        assert torch.equal(tensor.to_dense(), sk.ops.unpack_two_four(packed))

    def test_refused(self):
        packed = sk.ops.pack_two_four(torch.randn(32, 64))
        with pytest.raises((TypeError, ValueError), match="float32"):
            export.to_semi_structured(packed)
        with pytest.raises(ValueError, match="packed must be on a GPU for kind 'cusparselt', got cpu"):
            export.to_semi_structured(packed, "cusparselt")
        with pytest.raises(ValueError, match="kind must be 'cutlass' or 'cusparselt', got 'cublas'"):
            export.to_semi_structured(packed, "cublas")
        small = sk.ops.pack_two_four(torch.randn(48, 64).bfloat16())
        with pytest.raises(ValueError, match="32"):
            export.to_semi_structured(small)
