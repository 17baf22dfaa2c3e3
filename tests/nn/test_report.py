"""The table that sparsify_ returns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsekern.nn import is_depthwise, sparsify_


def small_model():
    shared = nn.Linear(10, 20)
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(2, 4, 3),
            "fc": shared,
            "again": shared,
            "twin": nn.Linear(10, 20),
            "out": nn.Bilinear(2, 2, 3),
        }
    )
    model["twin"].weight = shared.weight
    return model


def test_numbers():
    model = small_model()
    report = sparsify_(model, 0.75, generator=torch.Generator().manual_seed(0))
    conv, fc, twin, out = report.layers
    assert (conv.name, conv.shape, conv.numel, conv.nnz) == ("conv", (4, 2, 3, 3), 72, 18)
    assert conv.sparsity == 0.75
    fan_in = model["conv"].pattern.fan_in()
    assert (conv.fan_in_min, conv.fan_in_mean) == (fan_in.min().item(), 4.5)
    assert (conv.value_bytes, conv.dense_bytes) == (18 * 4, 72 * 4)
    assert conv.sparsity_asked == pytest.approx(0.75)
    assert conv.pattern_bytes == model["conv"].pattern.nbytes
    assert fc.aliases == ("again",)
    assert twin.tied_to == "fc"
    assert not out.converted
    assert (report.nnz, report.numel, report.sparsity) == (68, 272, 0.75)


def test_masked_storage_counts_the_dense_weight():
    model = nn.Sequential(nn.Linear(10, 20, dtype=torch.float64))
    (layer,) = sparsify_(model, 0.75, storage="masked").layers
    assert layer.value_bytes == layer.dense_bytes == 200 * 8


def test_table():
    lines = str(sparsify_(small_model(), 0.75, generator=torch.Generator().manual_seed(0))).splitlines()
    assert lines[0].split("  ")[0] == "layer"
    assert [line.split()[0] for line in lines[1:5]] == ["conv", "fc", "twin", "out"]
    assert lines[2].startswith("fc (= again)  20x10")
    assert "shares the weight of fc" in lines[3]
    assert "left: Bilinear is not nn.Linear or nn.Conv2d" in lines[4]
    # Right-aligned numbers end where their header ends.
    for title, value in (("nnz", "18"), ("sparsity", "0.7500"), ("dense bytes", "288")):
        end = lines[0].index(f" {title}") + len(title) + 1
        assert lines[1][:end].endswith(f" {value}")
    assert lines[5] == ""
    assert lines[6].startswith("converted 3 of 4 layers: sparsity 0.7500, 68 of 272 weights")


def test_masks_have_no_asked_sparsity():
    model = nn.Sequential(nn.Linear(4, 4))
    report = sparsify_(model, masks={"0": torch.eye(4, dtype=torch.bool)})
    assert report.layers[0].sparsity_asked is None
    assert " mask " in str(report).splitlines()[1]


@pytest.mark.parametrize("pattern", ["unstructured", "block"])
def test_asked_is_before_rounding(pattern):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(96, 96))
    report = sparsify_(model, 0.7, pattern=pattern)
    assert [layer.sparsity_asked for layer in report.layers] == pytest.approx([0.7, 0.7], abs=1e-12)
    # 2.7 of 9 weights and 2,764.8 of 9,216; or 0.3 of 1 block and 0.9 of 3 x 3 blocks of 64 or less.
    assert report.layers[0].sparsity == pytest.approx(2 / 3 if pattern == "unstructured" else 0)
    row = str(report).splitlines()[1]
    assert row.split()[2:4] == [f"{report.layers[0].sparsity:.4f}", "0.7000"]


def test_nothing_converted():
    model = nn.Sequential(nn.Linear(4, 4))
    sparsify_(model, 0.5)
    assert str(sparsify_(model, 0.5)).endswith("converted nothing: 1 layers left as they were")


def test_outputs_without_a_weight_are_counted():
    mask = torch.ones(6, 10, dtype=torch.bool)
    mask[1] = mask[4] = False
    model = nn.Sequential(nn.Linear(10, 6), nn.Linear(10, 6), nn.Conv2d(2, 6, 3, groups=2))
    masks = {"0": mask, "1": ~mask, "2": torch.ones(6, 1, 3, 3, dtype=torch.bool)}
    report = sparsify_(model, masks=masks)
    assert [layer.empty_outputs for layer in report.layers] == [2, 4, 0]
    assert [layer.depthwise for layer in report.layers] == [False, False, True]
    *_, note = str(report).splitlines()
    assert note == "outputs without an active weight: 6 in 2 of these layers; most in 1, 4 of 6"
    assert "without an active weight" not in str(sparsify_(small_model(), 0.0))


def test_depthwise_layers_that_lose_outputs_are_pointed_out():
    def make():
        return nn.Sequential(nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 8, 1), nn.Conv2d(1, 8, 3))

    model = make()
    report = sparsify_(model, 0.9, generator=torch.Generator().manual_seed(0))
    assert report.layers[0].empty_outputs > 10
    assert [is_depthwise(module) for module in model] == [True, False, False]
    *_, note = str(report).splitlines()
    assert note.startswith("1 of the ")
    assert "filter_fn=lambda module, name: not sparsekern.nn.is_depthwise(module)" in note
    model = make()
    report = sparsify_(model, 0.9, filter_fn=lambda module, name: not is_depthwise(module))
    assert [layer.name for layer in report.left] == ["0"]
    assert not is_depthwise(nn.Linear(4, 4))
    assert not is_depthwise(nn.Conv2d(4, 4, 3, groups=2))
