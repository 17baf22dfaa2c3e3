"""Models of timm: their reports, and short trainings of narrow ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsekern as sk
from sparsekern.nn import is_depthwise, sparsify_
from tests.clients.training import Client, assert_trains_and_resumes

timm = pytest.importorskip("timm", reason="timm is not installed")


def generator():
    return torch.Generator().manual_seed(0)


def image_loss(side):
    """Of a few images of noise, for a model with five classes."""
    images = torch.randn(8, 3, side, side, generator=generator())
    labels = torch.randint(5, (8,), generator=generator())
    return lambda model: F.cross_entropy(model(images), labels)


def narrow_resnet():
    """ResNet-50 with one block a stage and an eighth of the channels."""
    return timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck,
        (1, 1, 1, 1),
        num_classes=5,
        stem_width=8,
        base_width=8,
        channels=(16, 32, 64, 64),
    )


def narrow_vit():
    return timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=5
    )


def test_resnet_trains():
    report = assert_trains_and_resumes(
        Client(narrow_resnet, image_loss(32), exclude=("fc",), learning_rate=0.01)
    )
    assert [row.name for row in report.left] == ["fc"]
    assert sum(row.shape[2:] == (1, 1) for row in report.converted) == 11


def test_vit_trains():
    exclude = ("patch_embed", "head")
    report = assert_trains_and_resumes(Client(narrow_vit, image_loss(16), exclude=exclude))
    reasons = {row.name: row.reason for row in report.left}
    assert reasons.pop("VisionTransformer") == (
        "VisionTransformer is not nn.Linear or nn.Conv2d: it holds cls_token and pos_embed itself"
    )
    assert reasons == {"patch_embed.proj": "excluded by 'patch_embed'", "head": "excluded by 'head'"}


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=10)


@pytest.mark.parametrize(
    ("name", "converted", "left"),
    [("resnet50", 54, []), ("vit_tiny_patch16_224", 50, ["VisionTransformer"])],
)
def test_every_layer_of_a_real_one_converts(name, converted, left):
    model = on_meta(name)
    report = sparsify_(model, 0.9, distribution="erk", init="per_neuron", generator=generator())
    assert len(report.converted) == converted
    assert [row.name for row in report.left] == left
    dense = on_meta(name)
    matrices = [m.weight.numel() for m in dense.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert report.numel == sum(matrices)
    assert report.nnz == round(0.1 * sum(matrices))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "tf_efficientnet_b0",
            "Conv2dSame is a subclass of nn.Conv2d; only the exact type is converted: where",
        ),
        (
            "mobilenetv3_small_100",
            "timm.layers.linear.Linear is a subclass of nn.Linear; only the exact type is converted: where",
        ),
        ("swin_tiny_patch4_window7_224", "it holds relative_position_bias_table itself"),
    ],
)
def test_what_others_leave_is_named(name, reason):
    report = sparsify_(on_meta(name), 0.9, filter_fn=lambda module, name: not is_depthwise(module))
    assert report.left
    assert all(row.reason == "filter_fn returned False" or reason in row.reason for row in report.left)
    assert any(reason in row.reason for row in report.left)


def test_the_guide_runs():
    """Its blocks in ```py need timm, those in ```python are run with the other guides."""
    guide = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
    (block,) = re.findall(r"^```py\n(.*?)^```$", guide.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    with torch.device("meta"):
        exec(compile(block, str(guide), "exec"), {"sk": sk})
