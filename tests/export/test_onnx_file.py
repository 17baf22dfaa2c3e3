"""ONNX files: what a runtime computes from them, and what is refused."""

from __future__ import annotations

import builtins
import errno
import os
from dataclasses import asdict

import numpy
import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import save_checkpoint
from sparsekern.experiments.recipe import load_recipe
from sparsekern.export import onnx_file, to_onnx
from tests.convert.models import convert, dense_model, images, model_of

onnxruntime = pytest.importorskip("onnxruntime")


def run(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    results = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    return [torch.from_numpy(result) for result in results]


def test_a_sparse_model_in_a_file_of_the_command(tmp_path, capsys):
    """One export serves for all: from a packed file, with an open batch size, checked by a runtime."""
    model = model_of("compact")
    packed, path = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    sk.export.save_safetensors(model, packed)
    made = "tests.convert.models:dense_model"
    assert convert(packed, path, "--model", made, "--input-shape", "1,4,5,5") == 0
    assert f"{path}: onnx, {path.stat().st_size:,} bytes" in capsys.readouterr().out
    for batch in (1, 2, 9):
        [found] = run(path, images(batch))
        with torch.no_grad():
            torch.testing.assert_close(found, model(images(batch)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "2:4 fixed", "2:4 held", "int8"])
def test_every_kind_of_layer(kind, tmp_path):
    model = model_of(kind)
    model.train()  # exported in evaluation mode all the same
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    path = tmp_path / "model.onnx"
    to_onnx(model, path, images(3))
    assert [type(module) for module in model.modules()] == kinds
    assert model.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    dense = dense_model().eval()
    dense.load_state_dict(sk.export.dense_state_dict(model.eval()))
    with torch.no_grad():
        torch.testing.assert_close(run(path, images(5))[0], dense(images(5)), rtol=1e-4, atol=1e-5)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.linear = nn.Linear(8, 4)

    def forward(self, ids, mask=None):
        return {"y": self.linear(self.embedding(ids)) * mask[..., None], "next": ids + 1}


@pytest.mark.slow
def test_keywords_integers_and_several_results(tmp_path):
    model = Tokens()
    sk.sparsify_(model, sparsity=0.5)
    ids, mask = torch.randint(11, (2, 5)), torch.ones(2, 5)
    for inputs, dynamic in ({"ids": ids, "mask": mask}, True), ((ids, mask), False):
        to_onnx(model, tmp_path / "a.onnx", inputs, dynamic_batch=dynamic)
        size = 3 if dynamic else 2
        ids, mask = torch.randint(11, (size, 5)), torch.rand(size, 5)
        y, following = run(tmp_path / "a.onnx", ids, mask)
        torch.testing.assert_close(y, model(ids, mask)["y"].detach(), rtol=1e-4, atol=1e-6)
        assert torch.equal(following, ids + 1)
        ids, mask = torch.randint(11, (2, 5)), torch.ones(2, 5)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_float64_also_where_a_runtime_lacks_its_kernel(layer, tmp_path):
    """A single layer, too."""
    if layer == "linear":
        model, x = sk.nn.SparseLinear(8, 4, sparsity=0.5, dtype=torch.float64), torch.randn(2, 8).double()
    else:
        model = sk.nn.SparseConv2d(4, 4, 3, sparsity=0.5, dtype=torch.float64)
        x = torch.randn(2, 4, 5, 5).double()
    to_onnx(model, tmp_path / "a.onnx", x)
    assert (tmp_path / "a.onnx").stat().st_size > 0


@pytest.mark.slow
def test_what_cannot_be_exported(tmp_path):
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Linear(8, 8), Branch())
    with pytest.raises(ValueError, match="can export, got Sequential, and"):
        to_onnx(model, tmp_path / "a.onnx", torch.randn(2, 8))
    assert os.listdir(tmp_path) == []


def layer():
    return sk.nn.SparseLinear(8, 4, sparsity=0.5)


X = torch.randn(2, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda p: ({}, p, X), TypeError, r"model must be a torch\.nn\.Module, got"),
        (lambda p: (layer(), 3, X), TypeError, r"path must be the path of a \.onnx file, got 3"),
        (lambda p: (layer(), "a.pt", X), ValueError, r"path must be the path of a \.onnx file, got 'a\.pt'"),
        (lambda p: (layer(), p, 3), TypeError, "example_inputs must be a tensor, a sequence .*, got 3"),
        (lambda p: (layer(), p, []), ValueError, "example_inputs must be .*, got no tensor in it"),
        (lambda p: (layer(), p, {1: X}), TypeError, "got a mapping with other keys than names"),
        (lambda p: (layer(), p, [X, X[:1]]), ValueError, r"one batch size .* shapes \(2, 8\), \(1, 8\)"),
        (lambda p: (layer(), p, torch.tensor(1.0)), ValueError, r"one batch size .* got shapes \(\)"),
        (lambda p: (layer(), p, X[:0]), ValueError, r"one batch size of at least 1, .* shapes \(0, 8\)"),
        (
            lambda p: (layer(), p, X[:, :7]),
            ValueError,
            "must be what the model takes, got .*2, 7.*: RuntimeError",
        ),
        (lambda p: (layer().bfloat16(), p, X), TypeError, "must be in one of .*, got torch.bfloat16"),
    ],
)
def test_refused(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        to_onnx(*arguments(tmp_path / "a.onnx"))
    assert os.listdir(tmp_path) == []


class TestWithoutAnExport:
    """What follows it, on what it would have given."""

    @pytest.fixture(autouse=True)
    def exported(self, monkeypatch):
        results = [numpy.zeros((2, 4), numpy.float32)]
        monkeypatch.setattr(onnx_file, "_export", lambda *_: b"new")
        monkeypatch.setattr(onnx_file, "_run", lambda content, inputs: ("a runtime", results))
        return results

    @staticmethod
    def silent():
        module = layer()
        with torch.no_grad():
            module.values.zero_()
        return module

    def test_other_results_are_refused(self, exported, tmp_path):
        path = tmp_path / "a.onnx"
        path.write_text("old")
        to_onnx(self.silent(), path, X, dynamic_batch=False)
        assert path.read_text() == "new"
        for wrong, message in [
            ([numpy.full((2, 4), 1e-3, numpy.float32)], "result 0 a difference of -0.001"),
            ([numpy.full((2, 4), numpy.nan, numpy.float32)], "result 0 a difference of nan"),
            ([numpy.zeros((4, 2), numpy.float32)], "result 0 a torch.float32 tensor of shape"),
            ([], "result 0 0 tensors in place of 1"),
        ]:
            exported[:] = wrong
            with pytest.raises(
                ValueError, match="model must give the results of its ONNX export in a runtime, got"
            ) as e:
                to_onnx(self.silent(), path, X, dynamic_batch=False)
            assert message in str(e.value)

    def test_a_full_disk_leaves_what_was_there(self, tmp_path, monkeypatch):
        path = tmp_path / "a.onnx"
        path.write_text("old")

        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            to_onnx(self.silent(), path, X, dynamic_batch=False)
        assert path.read_text() == "old"

    def test_more_than_a_file_takes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(onnx_file, "MOST_BYTES", 100)
        with pytest.raises(ValueError, match="at most 100 bytes of weights when dense, got 144"):
            to_onnx(self.silent(), tmp_path / "a.onnx", X)

    def test_without_its_packages(self, tmp_path, monkeypatch):
        original = builtins.__import__

        def without(name, *arguments, **keywords):
            if name.startswith("onnxscript"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return original(name, *arguments, **keywords)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(ImportError, match="needs the packages onnx and onnxscript: pip install"):
            to_onnx(self.silent(), tmp_path / "a.onnx", X)


@pytest.mark.slow
def test_the_run_of_a_recipe_names_its_model(tmp_path):
    recipe = load_recipe("lenet5-mnist").override({"method": "sr_ste"})
    model = build_model(recipe)[0].eval()
    save_checkpoint(
        tmp_path / "checkpoint.pt", {"recipe": asdict(recipe), "trainer": {"model": model.state_dict()}}
    )
    assert convert(tmp_path, tmp_path / "a.onnx", "--input-shape", "2,1,28,28") == 0
    x = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(run(tmp_path / "a.onnx", x)[0], model(x), rtol=1e-4, atol=1e-5)
