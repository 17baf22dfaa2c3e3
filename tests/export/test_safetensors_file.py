"""A model in one safetensors file."""

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
from tests.export.networks import X, dense_network, network


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_round_trip(storage, tmp_path):
    model, path = network(storage), tmp_path / "model.safetensors"
    export.save_safetensors(model, path)
    other = network(storage, seed=1)
    kept = other[3].stored_weight
    export.load_safetensors(other, path)
    assert other[3].stored_weight is kept
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_equal_models_make_equal_files(tmp_path):
    contents = set()
    for i in range(5):
        export.save_safetensors(network(), tmp_path / f"{i}.safetensors")
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(contents) == 1


def test_another_number_of_values(tmp_path):
    model, path = network(), tmp_path / "model.safetensors"
    sk.densify_(model)
    sk.sparsify_(model, sparsity=0.5, exclude=["5"])
    export.save_safetensors(model, path)
    other = network()
    parameters = list(other.parameters())
    export.load_safetensors(other, path)
    assert all(ours is before for ours, before in zip(other.parameters(), parameters, strict=True))
    assert other[3].pattern == model[3].pattern
    torch.testing.assert_close(other.eval()(X), model.eval()(X))


def test_ties(tmp_path):
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


def test_dense_ties_where_another_layer_is_resized(tmp_path):
    def tied(sparsity):
        model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16, bias=False))
        model[2].weight = model[0].weight
        sk.sparsify_(model, sparsity, exclude=["2"])
        return model

    path = tmp_path / "tied.safetensors"
    model, other = tied(0.5), tied(0.75)
    export.save_safetensors(model, path)
    export.load_safetensors(other, path)
    assert other[2].weight is other[0].weight
    x = torch.arange(16)
    assert torch.equal(other(x), model(x))


def test_a_model_on_meta(tmp_path):
    path = tmp_path / "model.safetensors"
    export.save_safetensors(network(), path)
    with pytest.raises(ValueError, match=r"got '0\.values' on the meta device: load_sharded gives it some"):
        export.load_safetensors(network().to("meta"), path)


def test_any_reader_gets_the_packed_tensors(tmp_path):
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


def test_another_model_is_refused_before_anything_is_loaded(tmp_path):
    model, path = network(), tmp_path / "model.safetensors"
    export.save_safetensors(model, path)
    others = {
        "expected .*'shape': \\[8, 32\\].* for layer '3', found .*16, 32": nn.Sequential(
            network()[0], nn.BatchNorm2d(8), nn.Flatten(), sk.nn.SparseLinear(32, 8, sparsity=0.5)
        ),
        "for layer '0', found .*SparseConv2d.* no sparse layers: call sparsify_ as before": dense_network(),
        "'pattern weight'.* for layer '0', found .*'pattern values'": network("masked"),
    }
    for message, other in others.items():
        before = {key: value.clone() for key, value in other.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            export.load_safetensors(other, path)
        assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_a_tensor_that_does_not_fit_leaves_all_as_they_were(tmp_path):
    model, path = network(), tmp_path / "model.safetensors"
    export.save_safetensors(model, path)
    other = network(seed=1)
    other[5] = nn.Linear(16, 7)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"expected the tensors of this model: (?s:.*)5\.weight"):
        export.load_safetensors(other, path)
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_files_of_others(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="expected a file of save_safetensors, found one without its header"):
        export.load_safetensors(network(), path)
    path.write_bytes(b"no file of tensors")
    with pytest.raises(ValueError, match="expected a safetensors file, found a damaged one"):
        export.load_safetensors(network(), path)
    content = safetensors.torch.save(
        {"a": torch.ones(2)}, {"sparsekern": json.dumps({"version": 9, "layers": {}, "aliases": {}})}
    )
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected version 1, found 9"):
        export.load_safetensors(network(), path)


@pytest.mark.parametrize("path", [3, "model.pt", ""])
def test_bad_paths(path):
    for call in (export.save_safetensors, export.load_safetensors):
        with pytest.raises(
            (TypeError, ValueError), match=r"path must be the path of a \.safetensors file, got"
        ):
            call(network(), path)


def test_a_folder_that_is_not_there(tmp_path):
    path = tmp_path / "none" / "model.safetensors"
    with pytest.raises(OSError, match=re.escape(str(path))):
        export.save_safetensors(network(), path)


def test_what_is_no_model():
    for call in (export.save_safetensors, export.load_safetensors):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
            call({"a": 1}, "a.safetensors")
