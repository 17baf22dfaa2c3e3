"""`sparsekern convert`: what it prints, writes and refuses."""

from __future__ import annotations

import builtins
import errno
import os
import re
import shlex
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

import sparsekern as sk
from sparsekern.convert.command import build_parser, check_options
from sparsekern.methods.masks import load_masks
from tests.convert.models import convert, model_of


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A packed model, its dense weights, and weights without a zero."""
    folder = tmp_path_factory.mktemp("files")
    model = model_of("compact")
    sk.export.save_safetensors(model, folder / "packed.safetensors")
    torch.save(model.state_dict(), folder / "packed.pt")
    torch.save(sk.export.dense_state_dict(model), folder / "zeros.pt")
    torch.save({"state_dict": sk.export.dense_state_dict(model), "epoch": 3}, folder / "lightning.ckpt")
    torch.save(nn.Linear(8, 4).state_dict(), folder / "full.pt")
    torch.save(nn.Linear(8, 4), folder / "pickled.pt")
    torch.save({"epoch": 3}, folder / "epoch.pt")
    torch.save({"bias": torch.zeros(3)}, folder / "bias.pt")
    (folder / "text.pt").write_text("no weights")
    (folder / "text.safetensors").write_text("no weights")
    (folder / "empty").mkdir()
    return folder


def refused(capsys, *arguments):
    """The one line of the error."""
    try:
        code = convert(*arguments)
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("sparsekern convert: error: ")
    return err.removeprefix("sparsekern convert: error: ").strip()


def test_the_table(files, tmp_path, capsys):
    out = tmp_path / "dense.pt"
    assert convert(files / "packed.safetensors", out, "--to", "dense") == 0
    lines = capsys.readouterr().out.splitlines()
    size = (files / "packed.safetensors").stat().st_size
    assert lines[0] == f"{files / 'packed.safetensors'}: a file of save_safetensors, {size:,} bytes"
    assert lines[1].split() == "layer shape zeros from to bytes in bytes out".split()
    assert re.fullmatch(r"0 +8x4x3x3 +70\.\d\d% +packed +dense +[\d,]+ +1,152", lines[2])
    assert re.fullmatch(r"5 +36x300 +70\.00% +packed +dense +[\d,]+ +43,200", lines[4])
    assert lines[6].split()[:3] == ["9", "other", "tensors"]
    assert lines[7].split()[0] == "total"
    assert lines[8] == f"{out}: dense, {out.stat().st_size:,} bytes"
    assert len(lines) == 9


@pytest.mark.parametrize("name", ["zeros.pt", "lightning.ckpt"])
def test_the_pattern_is_taken_from_the_zeros(files, tmp_path, name):
    """So that the masks make another model of the same layers, which loads the file."""
    out = tmp_path / "packed.safetensors"
    assert convert(files / name, out) == 0
    expected = load_masks(files / "packed.safetensors")
    assert load_masks(out) == expected
    other = model_of("compact", seed=3)
    sk.export.load_safetensors(other, out)
    assert torch.equal(other[5].to_dense(), model_of("compact")[5].to_dense())


def test_shards(files, tmp_path, capsys):
    folder, out = tmp_path / "shards", tmp_path / "one.safetensors"
    written = sk.export.save_sharded(model_of("compact"), folder, shard_bytes=4000)
    assert len(written) > 1
    assert convert(folder, out) == 0
    size = sum(path.stat().st_size for path in written)
    assert capsys.readouterr().out.startswith(f"{folder}: a folder of save_sharded, {size:,} bytes\n")
    ours, theirs = (safetensors.torch.load_file(path) for path in (out, files / "packed.safetensors"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    before = [path.read_bytes() for path in written]
    same = refused(capsys, folder, written[1], "--overwrite")
    assert same == f"OUT must be another file than IN, got {written[1]}"
    assert [path.read_bytes() for path in written] == before
    written[1].unlink()
    assert f"{written[1]}: expected the file that" in refused(capsys, folder, out, "--overwrite")


def test_layers_that_stay_dense(files, tmp_path, capsys):
    out = tmp_path / "packed.pt"
    state = torch.load(files / "zeros.pt", weights_only=True)
    state["7.weight"] = torch.ones(20, 36)
    state["7.weight"][0, :9] = 0
    torch.save(state, tmp_path / "in.pt")
    assert convert(tmp_path / "in.pt", out, "--exclude", "[03]") == 0
    assert load_masks(out).keys() == {"5"}
    table = capsys.readouterr().out
    assert re.search(r"^0 .* dense +dense .*  excluded$", table, re.MULTILINE)
    assert "its zeros are 1.25%, less than --min-sparsity 0.05" in table
    assert convert(tmp_path / "in.pt", out, "--min-sparsity", 0.01, "--overwrite") == 0
    assert load_masks(out).keys() == {"0", "3", "5", "7"}


def test_layers_pruned_by_torch_keep_their_masks(tmp_path):
    model = nn.Sequential(nn.Linear(16, 8))
    prune.l1_unstructured(model[0], "weight", amount=0.6)
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    assert convert(tmp_path / "pruned.pt", tmp_path / "dense.safetensors", "--to", "dense") == 0
    state = safetensors.torch.load_file(tmp_path / "dense.safetensors")
    assert state.keys() == {"0.weight", "0.bias"}
    assert torch.equal(state["0.weight"], model[0].weight)
    assert convert(tmp_path / "pruned.pt", tmp_path / "packed.pt") == 0
    assert load_masks(tmp_path / "packed.pt")["0"] == sk.Pattern.from_mask(model[0].weight_mask != 0)


def test_tied_layers_stay_tied(tmp_path, capsys):
    def tied():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        return model

    model = tied()
    sk.sparsify_(model, sparsity=0.5)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert convert(tmp_path / "a.pt", tmp_path / "dense.pt", "--to", "dense") == 0
    assert "shares the weight of a layer above" in capsys.readouterr().out
    state = torch.load(tmp_path / "dense.pt", weights_only=True)
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()
    assert convert(tmp_path / "dense.pt", tmp_path / "packed.safetensors") == 0
    with safetensors.safe_open(tmp_path / "packed.safetensors", "pt") as file:
        assert set(file.keys()) == {"0.values", "0.pattern", "0.bias", "1.bias"}
    other = tied()
    sk.sparsify_(other, sparsity=0.5, init="dense")
    sk.export.load_safetensors(other, tmp_path / "packed.safetensors")
    assert torch.equal(other[1].to_dense(), model[0].to_dense())
    # Readers of dense safetensors look for every name.
    assert convert(tmp_path / "packed.safetensors", tmp_path / "d.safetensors", "--to", "dense") == 0
    assert {"0.weight", "1.weight"} <= safetensors.torch.load_file(tmp_path / "d.safetensors").keys()


def test_stored_zeros_are_told_of(tmp_path, capsys):
    layer = sk.nn.SparseLinear(8, 8, sparsity=0.5)
    with torch.no_grad():
        layer.values[:3] = 0
    torch.save(layer.state_dict(), tmp_path / "a.pt")
    assert convert(tmp_path / "a.pt", tmp_path / "b.pt", "--to", "dense") == 0
    assert "3 of its stored weights are 0; dense does not keep where" in capsys.readouterr().out
    assert convert(tmp_path / "a.pt", tmp_path / "c.safetensors") == 0
    assert "note" not in capsys.readouterr().out
    assert load_masks(tmp_path / "c.safetensors")[""] == layer.pattern


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_stay(tmp_path, dtype):
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[:, ::2] = 0
    torch.save({"weight": weight}, tmp_path / "a.pt")
    source = tmp_path / "a.pt"
    for to in ("packed", "2:4", "csr", "masked"):
        assert convert(source, tmp_path / "b.pt", "--to", to, "--overwrite") == 0
        assert convert(tmp_path / "b.pt", tmp_path / "c.pt", "--to", "dense", "--overwrite") == 0
        found = torch.load(tmp_path / "c.pt", weights_only=True)["weight"]
        assert found.dtype == dtype
        assert torch.equal(found, weight), to


class TestTwoFour:
    def test_what_is_not_is_refused_with_counts(self, files, tmp_path, capsys):
        error = refused(capsys, files / "zeros.pt", tmp_path / "a.pt", "--to", "2:4")
        dense = torch.load(files / "zeros.pt", weights_only=True)["0.weight"]
        groups = (dense.permute(0, 2, 3, 1).reshape(-1, 4) != 0).sum(1)
        wrong = int((groups > 2).sum())
        assert (
            f"layer '0' must have at most two weights in every four that are not 0, got more in {wrong} of "
            in error
        )
        assert "--prune" in error
        assert os.listdir(tmp_path) == []

    def test_pruning_is_said_loudly(self, files, tmp_path, capsys):
        assert convert(files / "full.pt", tmp_path / "a.pt", "--to", "2:4", "--prune") == 0
        out, err = capsys.readouterr()
        assert err == (
            "sparsekern convert: WARNING: --prune set 16 weights of '' to 0 that were not: the model "
            "computes something else now\n"
        )
        layer = sk.nn.TwoFourLinear.from_dense(_linear(files), method="fixed")
        state = torch.load(tmp_path / "a.pt", weights_only=True)
        assert torch.equal(state["values"], layer.values)
        assert torch.equal(state["metadata"], layer.state_dict()["metadata"])

    def test_masks_that_follow_from_the_weight_are_nowhere(self, tmp_path, capsys):
        model = nn.Sequential(nn.Linear(8, 8))
        sk.sparsify_(model, pattern="2:4")
        sk.export.save_safetensors(model, tmp_path / "a.safetensors")
        error = refused(capsys, tmp_path / "a.safetensors", tmp_path / "b.pt", "--to", "dense")
        assert "layer '0' must have a 2:4 mask in the file" in error
        assert "fix_masks_" in error

    def test_shapes_of_convolutions_come_from_the_model(self, tmp_path, capsys):
        model = model_of("2:4 fixed")
        torch.save(model.state_dict(), tmp_path / "a.pt")
        source, out = tmp_path / "a.pt", tmp_path / "b.pt"
        assert convert(source, out, "--to", "dense", "--model", "tests.convert.models:dense_model") == 0
        found = torch.load(out, weights_only=True)
        assert torch.equal(found["0.weight"], model[0].to_dense())
        capsys.readouterr()
        assert convert(source, out, "--to", "dense", "--overwrite") == 0
        assert "--model tells those of convolutions" in capsys.readouterr().out


def _linear(files):
    linear = nn.Linear(8, 4)
    linear.load_state_dict(torch.load(files / "full.pt", weights_only=True))
    return linear


EXPECTED = "expected a .safetensors file, a state dict of torch.save, a checkpoint with one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt", "a.pt"], "none.pt: there is no such file"),
        (["text.pt", "a.pt"], f"text.pt: {EXPECTED}"),
        (["text.safetensors", "a.pt"], "text.safetensors: expected a safetensors file, found a damaged one"),
        (["pickled.pt", "a.pt"], "of a pickled model, save model.state_dict()"),
        (["epoch.pt", "a.pt"], "found the keys 'epoch'"),
        (["empty", "a.pt"], "found a folder without checkpoint.pt"),
        (["full.pt", "a.pt"], "must have a layer to convert, found none of 1 (the layer: it has no zeros)"),
        (["bias.pt", "a.pt"], "found no weight of two or four dimensions"),
        (["full.pt", "a.txt"], "OUT must end in .safetensors or .pt or .pth or .bin for --to packed, got"),
        (["zeros.pt", "a.safetensors", "--to", "csr"], "OUT must end in .pt or .pth or .bin for --to csr"),
        (["zeros.pt", "a.pt", "--prune"], "--prune must be left out unless --to 2:4"),
        (["zeros.pt", "a.pt", "--block-size", "4"], "--block-size must be left out unless --to bsr"),
        (["zeros.pt", "a.pt", "--to", "bsr", "--block-size", "0"], "--block-size: must be a whole number"),
        (["zeros.pt", "a.pt", "--to", "bsr", "--block-size", "7"], "no multiples of --block-size 7"),
        (
            ["zeros.pt", "a.pt", "--min-sparsity", "2"],
            "--min-sparsity: must be a number from 0 to 1, got '2'",
        ),
        (
            ["zeros.pt", "a.pt", "--exclude", "fc"],
            "--exclude must match a layer, got 'fc'; the layers are 0, 3",
        ),
        (
            ["zeros.pt", "a.pt", "--to", "dense", "--exclude", "0"],
            "--exclude must be left out for --to dense",
        ),
        (["zeros.pt", "a.pt", "--to", "coo"], "argument --to: invalid choice: 'coo'"),
        (["zeros.pt", "none/a.pt"], "cannot be written: there is no folder"),
        (["zeros.pt", "a.onnx"], "--input-shape must be given for --to onnx"),
        (["zeros.pt", "a.onnx", "--input-shape", "1,0"], "--input-shape: must be sizes such as 1,3,32,32"),
        (["zeros.pt", "a.onnx", "--input-shape", "1,4"], "--model must be given for --to onnx"),
        (["zeros.pt", "a.pt", "--model", "lenet"], "--model lenet: unknown recipe 'lenet'"),
        (["zeros.pt", "a.pt", "--model", ":f"], "--model :f: a model must be MODULE:CALLABLE"),
        (["zeros.pt", "a.pt", "--model", "no_such_module:f"], "cannot be imported: ModuleNotFoundError"),
        (["zeros.pt", "a.pt", "--model", "torch:no_such"], "the module 'torch' has no 'no_such'"),
        (
            ["zeros.pt", "a.pt", "--model", "torch:pi"],
            "--model torch:pi: torch:pi must be callable, got float",
        ),
        (["zeros.pt", "a.pt", "--model", "torch.nn:Linear"], "when called without arguments, got TypeError"),
        (["zeros.pt", "a.pt", "--model", "sys:exit"], "when called without arguments, got SystemExit"),
        (["zeros.pt", "a.pt", "--model", "builtins:dict"], "expected to make a torch.nn.Module, got a dict"),
        (
            ["zeros.pt", "a.pt", "--to", "dense", "--model", "torch.nn:Identity"],
            "expected the weights of the model, found others: Error(s) in loading state_dict for Identity",
        ),
    ],
)
def test_mistakes(files, tmp_path, capsys, arguments, message):
    source, out, *others = arguments
    assert message in refused(capsys, files / source, tmp_path / out, *others)
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_users_own_code_is_one_line(files, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "convert_fails_called.py").write_text("def build():\n    raise ValueError('two\\nlines')\n")
    (tmp_path / "convert_fails_on_import.py").write_text("raise ValueError('two\\nlines')\n")
    for model in ("convert_fails_called:build", "convert_fails_on_import:build"):
        error = refused(capsys, files / "zeros.pt", tmp_path / "a.pt", "--model", model)
        assert error.endswith("ValueError: two")
    assert not (tmp_path / "a.pt").exists()


def test_what_is_there_is_kept(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.pt"
    out.write_text("mine")
    assert "is there already: --overwrite replaces it" in refused(capsys, files / "zeros.pt", out)
    same = refused(capsys, files / "zeros.pt", files / "zeros.pt", "--overwrite")
    assert same.startswith("OUT must be another file than IN")
    folder = tmp_path / "folder.pt"
    folder.mkdir()
    assert refused(capsys, files / "zeros.pt", folder, "--overwrite").endswith("is a folder")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        error = refused(capsys, files / "zeros.pt", out, "--overwrite")
    assert error == f"{out}: cannot be written: No space left on device"
    assert out.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "folder.pt"]
    assert convert(files / "zeros.pt", out, "--overwrite") == 0
    assert load_masks(out).keys() == {"0", "3", "5", "7"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.update({"5.values": state["5.values"][:-1]}),
        lambda state: state["5.pattern"][20:40].fill_(7),
    ],
    ids=["values", "pattern"],
)
def test_damaged_layers_are_named(files, tmp_path, capsys, damage):
    state = torch.load(files / "packed.pt", weights_only=True)
    damage(state)
    torch.save(state, tmp_path / "a.pt")
    error = refused(capsys, tmp_path / "a.pt", tmp_path / "b.pt", "--to", "dense")
    assert error.startswith(f"{tmp_path / 'a.pt'}: layer '5' must have tensors that fit together: ")


def test_half_a_layer_is_told_of(files, tmp_path, capsys):
    state = torch.load(files / "packed.pt", weights_only=True)
    del state["5.pattern"]
    torch.save({**state, "extra": 3}, tmp_path / "a.pt")
    assert convert(tmp_path / "a.pt", tmp_path / "b.pt", "--to", "dense") == 0
    out = capsys.readouterr().out
    assert "note: 5.values is as it was, for want of what else a sparse layer stores" in out
    assert "note: left out, being no tensors: extra" in out


def test_nothing_of_the_extra_train_is_needed(files, tmp_path, capsys, monkeypatch, forget_modules):
    original = builtins.__import__

    def without_packages(name, *arguments, **keywords):
        if name in ("yaml", "tqdm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *arguments, **keywords)

    forget_modules("sparsekern.experiments", "sparsekern.convert")
    monkeypatch.setattr(builtins, "__import__", without_packages)
    assert convert(files / "packed.pt", tmp_path / "a.pt", "--to", "dense") == 0
    capsys.readouterr()
    arguments = [files / "packed.pt", tmp_path / "b.pt", "--to", "dense", "--model", "lenet5-mnist"]
    assert "--model lenet5-mnist: needs the package yaml, of the extra [train]" in refused(capsys, *arguments)


def documented_commands():
    root = Path(__file__).resolve().parents[2]
    texts = [path.read_text(encoding="utf-8") for path in (root / "README.md", *(root / "docs").glob("*.md"))]
    return re.findall(r"^sparsekern convert (.*)$", "\n".join(texts), re.MULTILINE)


def test_the_commands_of_the_documents_are_taken():
    commands = documented_commands()
    assert len(commands) >= 5
    for command in commands:
        check_options(build_parser().parse_args(shlex.split(command)))
