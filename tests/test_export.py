"""Sparse weights in the formats of other tools."""

from __future__ import annotations

import json
import os
import re

import pytest
import safetensors.torch
import torch
from torch import nn

import sparsekern as sk
from sparsekern import export


def network(storage="compact", seed=0):
    generator = torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)
    )
    sk.sparsify_(model, sparsity=0.7, storage=storage, exclude=["5"], init="per_neuron", generator=generator)
    return model


def dense_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)
    )


X = torch.randn(4, 3, 4, 4, generator=torch.manual_seed(5))


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("source", ["model", "state"])
def test_the_dense_model_computes_the_same(storage, source):
    model = network(storage).eval()
    state = (
        export.dense_state_dict(model)
        if source == "model"
        else export.dense_from_packed({key: value.clone() for key, value in model.state_dict().items()})
    )
    dense = dense_network().eval()
    assert list(state) == list(dense.state_dict())
    dense.load_state_dict(state)
    torch.testing.assert_close(dense(X), model(X))
    assert torch.equal(dense[3].weight, model[3].to_dense())


def test_tied_layers_have_both_names():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    sk.sparsify_(model, sparsity=0.5)
    state = export.dense_state_dict(model)
    assert torch.equal(state["0.weight"], state["1.weight"])


def test_a_single_layer_has_no_prefix():
    layer = sk.nn.SparseLinear(8, 4, sparsity=0.5)
    assert list(export.dense_state_dict(layer)) == ["weight", "bias"]
    assert torch.equal(export.dense_from_packed(layer.state_dict())["weight"], layer.to_dense())


def test_two_four_state():
    weight = torch.randn(6, 12, generator=torch.manual_seed(0))
    for columns in (4, 8, 12):
        packed = sk.ops.pack_two_four(weight[:, :columns])
        expected = sk.ops.unpack_two_four(packed)
        state = {"a.values": packed.values, "a.metadata": packed.metadata, "b.weight": weight}
        dense = export.dense_from_packed(state)
        assert torch.equal(dense["a.weight"], expected)
        assert dense["b.weight"] is weight
        masked = export.dense_from_packed({"weight": weight[:, :columns], "metadata": packed.metadata})
        assert torch.equal(masked["weight"], expected)


def test_what_does_not_fit_names_the_layer():
    model = network()
    state = model.state_dict()
    state["3.values"] = state["3.values"][:-1]
    with pytest.raises(ValueError, match=r"state must have a weight for the pattern of '3\.values'"):
        export.dense_from_packed(state)
    packed = sk.ops.pack_two_four(torch.randn(4, 8))
    wrong = {"a.values": packed.values, "a.metadata": torch.zeros_like(packed.metadata)}
    with pytest.raises(ValueError, match=r"metadata of 'a.values': metadata must have two ascending columns"):
        export.dense_from_packed(wrong)


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


class TestFiles:
    @pytest.mark.parametrize("storage", ["compact", "masked"])
    def test_round_trip(self, storage, tmp_path):
        model, path = network(storage), tmp_path / "model.safetensors"
        export.save_safetensors(model, path)
        other = network(storage, seed=1)
        kept = other[3].stored_weight
        export.load_safetensors(other, path)
        assert other[3].stored_weight is kept
        for key, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[key], value), key
        assert os.listdir(tmp_path) == ["model.safetensors"]

    def test_equal_models_make_equal_files(self, tmp_path):
        contents = set()
        for i in range(5):
            export.save_safetensors(network(), tmp_path / f"{i}.safetensors")
            contents.add((tmp_path / f"{i}.safetensors").read_bytes())
        assert len(contents) == 1

    def test_another_number_of_values(self, tmp_path):
        model, path = network(), tmp_path / "model.safetensors"
        sk.densify_(model)
        sk.sparsify_(model, sparsity=0.5, exclude=["5"])
        export.save_safetensors(model, path)
        other = network()
        export.load_safetensors(other, path)
        assert other[3].pattern == model[3].pattern
        torch.testing.assert_close(other.eval()(X), model.eval()(X))

    def test_ties(self, tmp_path):
        def tied(seed):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
            model[1].weight = model[0].weight
            sk.sparsify_(model, sparsity=0.5)
            return model

        path = tmp_path / "tied.safetensors"
        model, other = tied(0), tied(1)
        export.save_safetensors(model, path)
        export.load_safetensors(other, path)
        assert other[0].values is other[1].values
        x = torch.randn(3, 8)
        torch.testing.assert_close(other(x), model(x))

    def test_any_reader_gets_the_packed_tensors(self, tmp_path):
        model, path = network(), tmp_path / "model.safetensors"
        export.save_safetensors(model, path)
        tensors = safetensors.torch.load_file(path)
        assert torch.equal(tensors["3.values"], model[3].values)
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["sparsekern"])
        assert header["layers"]["3"] == {
            "class": "SparseLinear",
            "shape": [16, 32],
            "stored": "pattern values",
        }
        assert "5" not in header["layers"]

    def test_another_model_is_refused_before_anything_is_loaded(self, tmp_path):
        model, path = network(), tmp_path / "model.safetensors"
        export.save_safetensors(model, path)
        others = {
            "expected .*'shape': \\[8, 32\\].* for layer '3', found .*16, 32": nn.Sequential(
                network()[0], nn.BatchNorm2d(8), nn.Flatten(), sk.nn.SparseLinear(32, 8, sparsity=0.5)
            ),
            "for layer '0', found .*SparseConv2d": dense_network(),
            "'pattern weight'.* for layer '0', found .*'pattern values'": network("masked"),
        }
        for message, other in others.items():
            before = {key: value.clone() for key, value in other.state_dict().items()}
            with pytest.raises(ValueError, match=message):
                export.load_safetensors(other, path)
            assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())

    def test_files_of_others(self, tmp_path):
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file({"a": torch.ones(2)}, path)
        with pytest.raises(
            ValueError, match="expected a file of save_safetensors, found one without its header"
        ):
            export.load_safetensors(network(), path)
        path.write_bytes(b"no file of tensors")
        with pytest.raises(ValueError, match="expected a safetensors file, found a damaged one"):
            export.load_safetensors(network(), path)
        content = safetensors.torch.save({"a": torch.ones(2)}, {"sparsekern": json.dumps({"version": 9})})
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected version 1, found 9"):
            export.load_safetensors(network(), path)

    @pytest.mark.parametrize("path", [3, "model.pt", ""])
    def test_bad_paths(self, path):
        for call in (export.save_safetensors, export.load_safetensors):
            with pytest.raises(
                (TypeError, ValueError), match=r"path must be the path of a \.safetensors file, got"
            ):
                call(network(), path)

    def test_a_folder_that_is_not_there(self, tmp_path):
        path = tmp_path / "none" / "model.safetensors"
        with pytest.raises(OSError, match=re.escape(str(path))):
            export.save_safetensors(network(), path)


@pytest.mark.parametrize(
    "call",
    [export.dense_state_dict, lambda m: export.save_safetensors(m, "a.safetensors")],
    ids=["dense_state_dict", "save_safetensors"],
)
def test_what_is_no_model(call):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        call({"a": 1})
