"""What was converted predicts as before: to the bit where the form is the same again, else to rounding."""

from __future__ import annotations

import copy
from dataclasses import asdict

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import save_checkpoint
from sparsekern.experiments.recipe import load_recipe
from sparsekern.methods.masks import load_masks
from tests.convert.models import KINDS, convert, dense_model, model_of, predictions

BATCHES = range(1, 66)


@pytest.fixture(scope="module")
def kept():
    """Models and their predictions for every batch size, by kind."""
    models = {kind: model_of(kind) for kind in KINDS}
    return {kind: (model, predictions(model, BATCHES)) for kind, model in models.items()}


def load(model, path):
    if path.suffix == ".safetensors":
        sk.export.load_safetensors(model, path)
    else:
        model.load_state_dict(torch.load(path, weights_only=True), assign=True)
    return model.eval()


def assert_same(model, expected, batches=BATCHES):
    for batch, ours, theirs in zip(batches, predictions(model, batches), expected, strict=True):
        assert torch.equal(ours, theirs), f"batch of {batch}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_loaded_model_predicts_the_same_bits(kept, kind, ending, tmp_path):
    model, expected = kept[kind]
    path = tmp_path / f"model.{ending}"
    if ending == "pt":
        torch.save(model.state_dict(), path)
    else:
        sk.export.save_safetensors(model, path)
    assert_same(load(model_of(kind, seed=5), path), expected)


BACK = {"compact": "packed", "block": "packed", "masked": "masked", "2:4 fixed": "2:4"}


@pytest.mark.parametrize("kind", BACK)
def test_to_dense_and_back_predicts_the_same_bits(kept, kind, tmp_path):
    model, expected = kept[kind]
    packed, dense, again = (tmp_path / name for name in ("a.safetensors", "b.pt", "c.safetensors"))
    sk.export.save_safetensors(model, packed)
    assert convert(packed, dense, "--to", "dense") == 0
    assert convert(dense, again, "--to", BACK[kind]) == 0
    assert_same(load(model_of(kind, seed=5), again), expected)
    # The same file again, to the byte, but for the order of a layer's tensors.
    first, last = (_tensors(path) for path in (packed, again))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)


def _tensors(path):
    import safetensors.torch

    return safetensors.torch.load_file(path)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_weights_are_those_of_densify(kept, kind, tmp_path):
    model, expected = kept[kind]
    source, dense = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    sk.export.save_safetensors(model, source)
    assert convert(source, dense, "--to", "dense") == 0
    found = dense_model(5).eval()
    found.load_state_dict(_tensors(dense), strict=True)
    for name, weight in sk.export.dense_state_dict(model).items():
        assert torch.equal(found.state_dict()[name], weight), name
    for ours, theirs in zip(predictions(found, (1, 7, 64)), (expected[i - 1] for i in (1, 7, 64))):
        if kind == "int8":  # whose activations are rounded as well
            assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()
        else:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("form", "kind"), [("csr", "compact"), ("bsr", "block"), ("csr", "2:4 fixed")])
def test_torch_tensors_hold_the_weight_and_compute_the_same(kept, form, kind, tmp_path):
    """Sums of whole numbers are exact in any order."""
    model = copy.deepcopy(kept[kind][0]).double()
    layer = model[5]
    with torch.no_grad():
        layer.stored_weight.copy_((8 * layer.stored_weight).round() + 16)
        layer.bias.copy_((8 * layer.bias).round())
    source, sparse, again = (tmp_path / name for name in ("a.safetensors", "b.pt", "c.safetensors"))
    sk.export.save_safetensors(model, source)
    options = ["--block-size", 4] if form == "bsr" else []
    assert convert(source, sparse, "--to", form, *options) == 0
    state = torch.load(sparse, weights_only=True)
    weight = state["5.weight"]
    assert weight.layout == {"csr": torch.sparse_csr, "bsr": torch.sparse_bsr}[form]
    assert torch.equal(weight.to_dense(), layer.to_dense())
    x = torch.randint(-9, 10, (7, 300), generator=torch.Generator().manual_seed(0)).double()
    expected = layer(x)
    assert torch.equal((weight @ x.T).T + state["5.bias"], expected)
    assert torch.equal(nn.functional.linear(x, layer.to_dense(), layer.bias), expected)
    assert convert(sparse, again, "--to", "packed") == 0
    assert load_masks(again)["5"] == sk.Pattern.from_mask(layer.mask)


@pytest.mark.parametrize("method", ["rigl", "gradual_pruning", "two_four_fixed", "sr_ste"])
def test_the_checkpoint_of_a_run(method, tmp_path):
    """Also of 2:4 masks that nothing but the recipe tells of, and of convolutions' shapes."""
    options = {"method": method, **({"transposable": True, "model": "mlp"} if method == "sr_ste" else {})}
    recipe = load_recipe("lenet5-mnist").override(options)
    model = build_model(recipe)[0].eval()
    run = tmp_path / "run"
    run.mkdir()
    state = {"recipe": asdict(recipe), "trainer": {"model": model.state_dict()}}
    save_checkpoint(run / "checkpoint.pt", state)
    dense, packed = tmp_path / "dense.pt", tmp_path / "packed.safetensors"
    assert convert(run, dense, "--to", "dense") == 0
    found = torch.load(dense, weights_only=True)
    for name, weight in sk.export.dense_state_dict(model).items():
        assert torch.equal(found[name], weight), name
    if "two_four" in method or method == "sr_ste":
        assert convert(run, packed) == 0
        masks = load_masks(packed)
        assert masks.keys() == sk.methods.masks_of(model).keys()
        assert all(masks[name] == mask for name, mask in sk.methods.masks_of(model).items())
