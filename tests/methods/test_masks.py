"""Masks of models and of files, on to `sparsify_`."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import sparsekern as sk
from sparsekern.experiments.build import build_model
from sparsekern.experiments.folder import RunFolder
from sparsekern.experiments.recipe import load_recipe
from sparsekern.experiments.run import RunOptions, run
from sparsekern.methods import load_masks, masks_of, save_masks

SUFFIXES = [".pt", ".safetensors"]


def dense_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(360, 20), nn.Sequential(nn.Linear(20, 5))
    )


def sparse_model(storage="compact"):
    model = dense_model()
    generator = torch.Generator().manual_seed(1)
    sk.sparsify_(model, 0.7, storage=storage, exclude=["4.*"], generator=generator)
    return model


def pruned_model():
    model = dense_model()
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.l1_unstructured(model[3], "weight", 0.9)
    prune.l1_unstructured(model[3], "weight", 0.5)
    return model


def pruned_masks(model):
    return {"0": model[0].weight_mask.bool(), "3": model[3].weight_mask.bool()}


def assert_masks(found, expected):
    """Also that they are what `sparsify_` takes, layer for layer."""
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert torch.equal(found[name].to_mask(), mask), name
    model = dense_model()
    sk.sparsify_(model, masks=found)
    layers = dict(model.named_modules())
    for name, mask in expected.items():
        assert torch.equal(layers[name].mask, mask)


class TestOfAModel:
    @pytest.mark.parametrize("storage", ["compact", "masked"])
    def test_sparse_layers(self, storage):
        model = sparse_model(storage)
        found = masks_of(model)
        assert found["0"] is model[0].pattern
        assert_masks(found, {"0": model[0].mask, "3": model[3].mask})

    def test_pruned(self):
        model = pruned_model()
        assert_masks(masks_of(model), pruned_masks(model))

    def test_a_pruning_mask_counts_whatever_the_weight_is(self):
        model = dense_model()
        prune.identity(model[3], "weight")
        with torch.no_grad():
            model[3].weight_orig[0] = 0
        assert_masks(masks_of(model), {"3": torch.ones(20, 360, dtype=torch.bool)})

    def test_pruning_made_permanent(self):
        model = pruned_model()
        masks = pruned_masks(model)
        prune.remove(model[0], "weight")
        prune.remove(model[3], "weight")
        assert_masks(masks_of(model), masks)

    def test_densified(self):
        model = sparse_model()
        masks = {name: pattern.to_mask() for name, pattern in masks_of(model).items()}
        sk.densify_(model)
        assert_masks(masks_of(model), masks)

    def test_a_dense_model_has_none(self):
        assert masks_of(dense_model()) == {}

    def test_negative_zero_is_a_zero_and_nan_is_none(self):
        model = dense_model()
        with torch.no_grad():
            model[3].weight[3, 7], model[3].weight[4, 8] = -0.0, torch.nan
        mask = torch.ones(20, 360, dtype=torch.bool)
        mask[3, 7] = False
        assert_masks(masks_of(model), {"3": mask})

    def test_parametrized(self):
        class Masked(nn.Module):
            def __init__(self, mask):
                super().__init__()
                self.register_buffer("mask", mask)

            def forward(self, weight):
                return weight * self.mask

        class Positive(nn.Module):
            def forward(self, weight):
                return weight.relu()

        model = dense_model()
        first = torch.rand(20, 360, generator=torch.Generator().manual_seed(2)) < 0.5
        second = torch.rand(20, 360, generator=torch.Generator().manual_seed(3)) < 0.5
        positive = model[0].weight.detach() > 0
        parametrize.register_parametrization(model[0], "weight", Positive())
        parametrize.register_parametrization(model[3], "weight", Masked(first.float()))
        parametrize.register_parametrization(model[3], "weight", Masked(second))
        assert_masks(masks_of(model), {"0": positive, "3": first & second})

    def test_other_layers_are_left_out(self):
        model = nn.ModuleList([nn.Conv1d(3, 4, 2), nn.Embedding(5, 6), nn.ConvTranspose2d(2, 2, 2)])
        for layer in model:
            nn.init.zeros_(layer.weight)
        assert masks_of(model) == {}

    def test_shared_layers_and_shared_weights(self):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        model[1].weight = model[0].weight
        model.append(model[0])
        sk.sparsify_(model, 0.5, generator=torch.Generator().manual_seed(0))
        found = masks_of(model)
        assert list(found) == ["0", "1"]
        twin = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        twin[1].weight = twin[0].weight
        sk.sparsify_(twin, masks=found)
        assert twin[0].pattern is twin[1].pattern

    def test_it_is_left_unchanged(self):
        model = pruned_model()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        masks_of(model)
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    def test_bad_input(self):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 3"):
            masks_of(3)
        with pytest.raises(ValueError, match=r"1\.weight must be a tensor with contents"):
            masks_of(nn.Sequential(nn.ReLU(), nn.Linear(3, 3, device="meta")))


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestOfAFile:
    def test_round_trip(self, tmp_path, suffix):
        masks = masks_of(sparse_model())
        path = tmp_path / f"masks{suffix}"
        save_masks(masks, path)
        assert load_masks(path) == masks
        assert os.listdir(tmp_path) == [path.name]

    def test_of_a_model(self, tmp_path, suffix):
        model = pruned_model()
        save_masks(model, str(tmp_path / f"masks{suffix}"))
        assert_masks(load_masks(str(tmp_path / f"masks{suffix}")), pruned_masks(model))

    def test_bool_masks_and_one_pattern_in_two_layers(self, tmp_path, suffix):
        mask = torch.arange(12).view(3, 4) % 3 == 0
        pattern = sk.Pattern.from_mask(mask, tile_size=16, complete=True)
        save_masks({"a": mask, "b": pattern, "c.d": pattern, "": pattern}, tmp_path / f"masks{suffix}")
        found = load_masks(tmp_path / f"masks{suffix}")
        assert sorted(found) == ["", "a", "b", "c.d"]
        assert torch.equal(found["a"].to_mask(), mask)
        assert found["b"] == found["c.d"] == found[""] == pattern

    @pytest.mark.parametrize("storage", ["compact", "masked"])
    def test_a_state_dict(self, tmp_path, suffix, storage):
        model = sparse_model(storage)
        self.write(model.state_dict(), tmp_path / f"model{suffix}")
        assert_masks(load_masks(tmp_path / f"model{suffix}"), {"0": model[0].mask, "3": model[3].mask})

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
    def test_a_state_dict_of_a_pruned_model(self, tmp_path, suffix, dtype):
        model = pruned_model()
        # Others may be pruned too, and a buffer may have any name.
        state = {
            key: tensor.to(dtype) if key.endswith("_mask") else tensor
            for key, tensor in model.state_dict().items()
        }
        state |= {"conv1d.weight_mask": torch.ones(3, 3, 3), "other.pattern": torch.ones(3)}
        self.write(state, tmp_path / f"model{suffix}")
        assert_masks(load_masks(tmp_path / f"model{suffix}"), pruned_masks(model))

    def test_nothing_but_masks(self, tmp_path, suffix):
        masks = pruned_masks(pruned_model())
        self.write(masks, tmp_path / f"masks{suffix}")
        assert_masks(load_masks(tmp_path / f"masks{suffix}"), masks)
        self.write({f"{name}.weight_mask": mask for name, mask in masks.items()}, tmp_path / f"masks{suffix}")
        assert_masks(load_masks(tmp_path / f"masks{suffix}"), masks)

    def test_no_masks_in_it(self, tmp_path, suffix):
        path = tmp_path / f"model{suffix}"
        for state in [dense_model().state_dict(), {"causal": torch.ones(4, 4).bool(), "x": torch.ones(3)}]:
            self.write(state, path)
            with pytest.raises(ValueError, match=re.escape(str(path)) + ": expected masks .* found "):
                load_masks(path)

    def test_a_pattern_that_is_none(self, tmp_path, suffix):
        path = tmp_path / f"model{suffix}"
        data = masks_of(sparse_model())["3"].data.clone()
        data[-5] ^= 1
        self.write({"3.pattern": data}, path)
        with pytest.raises(ValueError, match=r"expected masks \(.*found one for '3' that is none: "):
            load_masks(path)

    def test_a_mask_of_no_weight(self, tmp_path, suffix):
        self.write({"a": torch.ones(3, dtype=torch.bool)}, tmp_path / f"m{suffix}")
        with pytest.raises(ValueError, match=r"found one for 'a' that is none: mask\.shape must be"):
            load_masks(tmp_path / f"m{suffix}")

    def test_cut_or_changed_anywhere(self, tmp_path, suffix):
        path = tmp_path / f"masks{suffix}"
        mask = torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) < 0.5
        save_masks({"fc": mask}, path)
        content = path.read_bytes()
        for cut in [0, 1, 8, len(content) // 2, len(content) - 1]:
            path.write_bytes(content[:cut])
            with pytest.raises(
                ValueError, match=r"expected masks .* found a damaged file or one of another kind"
            ):
                load_masks(path)
        for place in range(0, len(content), 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
            # Some bytes say nothing that is read (padding, dates); nothing else may pass or fail otherwise.
            with contextlib.suppress(ValueError):
                for pattern in load_masks(path).values():
                    assert torch.equal(pattern.to_mask(), mask)

    def test_a_file_of_another_kind(self, tmp_path, suffix):
        path = tmp_path / f"notes{suffix}"
        path.write_text("masks\n" * 50)
        with pytest.raises(ValueError, match="found a damaged file or one of another kind"):
            load_masks(path)

    def test_no_file(self, tmp_path, suffix):
        with pytest.raises(FileNotFoundError, match=f"none{suffix}"):
            load_masks(tmp_path / f"none{suffix}")

    def test_a_failure_leaves_the_old_file(self, tmp_path, suffix, monkeypatch):
        path = tmp_path / f"masks{suffix}"
        masks = masks_of(sparse_model())
        save_masks(masks, path)

        def full(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left on device"):
                save_masks({"0": masks["0"]}, path)
        assert load_masks(path) == masks
        assert os.listdir(tmp_path) == [path.name]

    def write(self, state, path):
        if path.suffix == ".safetensors":
            safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
        else:
            torch.save(state, path)


@pytest.mark.parametrize("place", ["state_dict", "model", "model_state_dict"])
def test_a_state_dict_beside_other_things(tmp_path, place):
    model = sparse_model()
    optimizer = torch.optim.AdamW(model.parameters())
    content = {"epoch": 3, place: model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "last.ckpt")
    assert load_masks(tmp_path / "last.ckpt") == masks_of(model)


def test_the_checkpoint_of_a_run(tmp_path):
    recipe = load_recipe("lenet5-digits").override({"steps": 2, "sparsity": 0.9, "benchmark_steps": 0})
    run(recipe, RunOptions(tmp_path / "run", bar=False), say=lambda line: None)
    masks = load_masks(RunFolder(tmp_path / "run").checkpoint)
    model, _ = build_model(recipe)
    assert masks == masks_of(model)


def test_a_reason_that_is_no_sentence_is_the_kind_of_error(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"hello")  # "KeyError: 101" of the unpickler
    with pytest.raises(ValueError, match=r"another kind \(KeyError\)$"):
        load_masks(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param([torch.ones(3)], "found a list", id="list"),
        pytest.param({}, "found nothing", id="empty"),
        pytest.param({i: i for i in range(9)}, r"found the keys 0, 1, 2, 3, 4, \.\.\.$", id="numbers"),
        pytest.param({"state": {"trainer": 3}}, "found the keys 'state'$", id="half_a_checkpoint"),
        pytest.param({"a": slice}, r"of another kind \(Weights only load failed", id="code"),
    ],
)
def test_another_file_of_torch(tmp_path, content, found):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=found):
        load_masks(tmp_path / "x.pt")


def test_without_safetensors(tmp_path, monkeypatch):
    masks = masks_of(sparse_model())
    path = tmp_path / "masks.safetensors"
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: save_masks(masks, path), lambda: load_masks(path)):
        with pytest.raises(ImportError, match=r"masks\.safetensors: a \.safetensors file needs the package"):
            call()
    assert not path.exists()
    save_masks(masks, tmp_path / "masks.pt")
    assert load_masks(tmp_path / "masks.pt") == masks


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        pytest.param(
            [], TypeError, "masks must be a mapping from layer name to mask, or a model, got", id="list"
        ),
        pytest.param({}, ValueError, "masks must be for at least one layer, got none", id="empty"),
        pytest.param(dense_model(), ValueError, "one layer, got a Sequential without any", id="dense"),
        pytest.param({3: torch.ones(2, 2).bool()}, TypeError, "names for keys, got 3", id="key"),
        pytest.param(
            {"a": torch.ones(2, 2, 2).bool()},
            ValueError,
            r"masks\['a'\] must have 2 or 4 dimensions",
            id="3-D",
        ),
        pytest.param(
            {"a": torch.ones(2, 2)}, TypeError, r"masks\['a'\] must be a tensor of dtype", id="float"
        ),
    ],
)
def test_bad_masks(tmp_path, masks, error, message):
    with pytest.raises(error, match=message):
        save_masks(masks, tmp_path / "masks.pt")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "error"),
    [(None, TypeError), (3, TypeError), ("", ValueError), (".", ValueError)],
    ids=["None", "number", "empty", "folder"],
)
def test_what_is_no_path_of_a_file_is_named(path, error):
    with pytest.raises(error, match="path must be the path of a file, got"):
        save_masks({"a": torch.ones(2, 2, dtype=torch.bool)}, path)
    with pytest.raises(error, match="path must be the path of a file, got"):
        load_masks(path)
